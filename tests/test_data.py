"""Readers and encoding: original layouts to exact rows, and every bad file to one line that says where."""

import os
import re
from pathlib import Path

import datasets
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Value
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tritune.errors import TrituneError
from tritune.tasks.data import hub as hub_reader
from tritune.tasks.data import load_glue_folder, load_task_data
from tritune.tasks.data.glue import features
from tritune.tasks.heads.text import collator, encode
from tritune.tasks.registry import TASKS, get_task

REAL = Path(os.environ.get("TRITUNE_DATA", Path(__file__).parents[1] / ".." / "shared" / "data")) / "glue"

# name: the lines of a file in the task's original layout, and the rows they hold
LAYOUTS = {
    "cola": (["gj04\t1\t\tThe cat sat.", "gj04\t0\t*\tCat the sat."], [("The cat sat.", 1), ("Cat the sat.", 0)]),
    "sst2": (["sentence\tlabel", "a charm \t1", "bleak \t0"], [("a charm ", 1), ("bleak ", 0)]),
    "mrpc": (
        ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t11\t12\tHe left .\tHe went .", "0\t13\t14\tYes .\tNo ."],
        [("He left .", "He went .", 1), ("Yes .", "No .", 0)],
    ),
    "stsb": (
        [
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
            "0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\tA plane.\tAn air plane.\t4.750",
            "1\tmain-news\theadlines\t2016\t2\tnone\tnone\tTalks end\tTalks go on\t0.000",
        ],
        [("A plane.", "An air plane.", 4.75), ("Talks end", "Talks go on", 0.0)],
    ),
    "qqp": (
        [
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
            "7\t1\t2\tWhy?\tHow come?\t1",
            "8\t3\t4\tWho?\tWhat?\t0",
        ],
        [("Why?", "How come?", 1), ("Who?", "What?", 0)],
    ),
    "mnli": (
        [
            "index\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label",
            "0\t( It rains )\tIt rains.\tIt is wet.\tneutral\tentailment",
            "1\t( It rains )\tIt rains.\tIt is dry.\tneutral\tcontradiction",
            "2\t( It rains )\tIt rains.\tIt is cold.\tentailment\tneutral",
        ],
        [("It rains.", "It is wet.", 0), ("It rains.", "It is dry.", 2), ("It rains.", "It is cold.", 1)],
    ),
    "qnli": (
        ["index\tquestion\tsentence\tlabel", "0\tWho?\tHe did.\tentailment", "1\tWhen?\tHe did.\tnot_entailment"],
        [("Who?", "He did.", 0), ("When?", "He did.", 1)],
    ),
    "rte": (
        ["index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\tnot_entailment", "1\tC.\tD.\tentailment"],
        [("A.", "B.", 1), ("C.", "D.", 0)],
    ),
    "wnli": (
        ["index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\t1", "1\tC.\tD.\t0"],
        [("A.", "B.", 1), ("C.", "D.", 0)],
    ),
    "demo": (["sentence\tlabel", "the cat sat\t1", "cat the sat\t0"], [("the cat sat", 1), ("cat the sat", 0)]),
}


def write(folder, name, text):
    path = Path(folder) / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def write_task(folder, name):
    """Every file of the task, with the rows of LAYOUTS."""
    for split in ("train", *(split.replace("validation", "dev") for split in TASKS[name].dev_splits)):
        write(folder, f"{split}.tsv", "\n".join(LAYOUTS[name][0]) + "\n")
    return get_task(name)


def rows_of(dataset):
    return [tuple(row.values()) for row in dataset]


def read_dev(folder, name, text):
    write(folder, "dev.tsv", text)
    return rows_of(load_glue_folder(get_task(name), folder, ["validation"])["validation"])


def tokenizer(**special):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "a", "dog"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=core, **({"pad_token": "[PAD]", "unk_token": "[UNK]"} | special))


# Reading


@pytest.mark.parametrize("name", LAYOUTS)
def test_reads_the_original_layout(tmp_path, name):
    task = write_task(tmp_path, name)
    data = load_task_data(task, tmp_path)
    assert tuple(data) == ("train", *task.dev_splits)
    for split in data.values():
        assert split.column_names == [*task.text_columns, "label"]
        assert rows_of(split) == LAYOUTS[name][1]
        label = split.features["label"]
        assert label == (Value("float32") if task.is_regression else ClassLabel(names=list(task.labels)))


def test_splits_restrict_what_is_read(tmp_path):
    task = write_task(tmp_path, "qnli")
    (tmp_path / "train.tsv").unlink()
    assert tuple(load_glue_folder(task, tmp_path, ["validation"])) == ("validation",)
    assert tuple(load_task_data(task, str(tmp_path), "validation")) == ("validation",)
    with pytest.raises(TrituneError, match=r"train\.tsv is missing: QNLI is read from train\.tsv, dev\.tsv"):
        load_glue_folder(task, tmp_path)
    with pytest.raises(TrituneError, match=r"QNLI has no split 'test': it has train, validation"):
        load_glue_folder(task, tmp_path, ["test"])


def test_mnli_reads_its_two_dev_files_apart(tmp_path):
    header = "sentence1\tsentence2\tgold_label\n"
    write(tmp_path, "dev_matched.tsv", header + "a\tb\tneutral\n")
    write(tmp_path, "dev_mismatched.tsv", header + "c\td\tcontradiction\n")
    data = load_glue_folder(get_task("MNLI"), tmp_path, ["validation_matched", "validation_mismatched"])
    assert rows_of(data["validation_matched"]) == [("a", "b", 1)]
    assert rows_of(data["validation_mismatched"]) == [("c", "d", 2)]


@pytest.mark.parametrize(
    "sentence",
    [
        '"To be',
        'say " it " twice',
        '""',
        "half \x85 a line",
        "para \u2028 graph \u2029",
        "feed \x0b \x0c \x1c",
        "lone \r return",
        "back\\slash \\t",
        "naïve 猫 \U0001f600",
        "zero \x00 byte",
        "",
        "  spaces  ",
        "#comment",
        "NA",
        "x" * 200_000,
    ],
    ids=lambda sentence: ascii(sentence[:12]),
)
def test_text_is_kept_as_it_is(tmp_path, sentence):
    assert read_dev(tmp_path, "sst2", f"sentence\tlabel\n{sentence}\t1\nnext\t0\n") == [(sentence, 1), ("next", 0)]


@pytest.mark.parametrize("name", ["mrpc", "cola"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_bom_line_ends_and_blank_lines(tmp_path, name, end):
    lines, rows = LAYOUTS[name]
    for text in (end.join(lines), end.join(lines) + end, end.join([*lines, "", "  ", ""])):
        assert read_dev(tmp_path, name, "\ufeff" + text) == rows


# Refusing


def assert_refused(message, name, folder, splits=("validation",)):
    with pytest.raises(TrituneError, match=message) as error:
        load_glue_folder(get_task(name), folder, splits)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "sst2",
            "text\tlabel\na\t1\n",
            r"dev\.tsv, line 1: SST-2 needs the columns \['sentence'\], found \['text', 'label'\]",
        ),
        ("mrpc", "Quality\t#1 String\n1\ta\n", r"line 1: MRPC needs the columns \['#2 String'\]"),
        ("rte", "sentence1,sentence2,label\na,b,c\n", r"needs the columns \['sentence1', 'sentence2', 'label'\]"),
        ("sst2", "", r"dev\.tsv is empty"),
        ("sst2", "\n\n", r"dev\.tsv is empty"),
        ("sst2", "sentence\tlabel\n\n", r"dev\.tsv has no rows"),
        ("cola", "", r"dev\.tsv has no rows"),
        ("sst2", "sentence\tlabel\na\t1\n\nb\t2\n", r"dev\.tsv, line 4: label '2' of SST-2 must be 0 or 1"),
        ("sst2", "sentence\tlabel\na\t-1\n", r"line 2: label '-1'"),
        ("sst2", "sentence\tlabel\na\t\n", r"line 2: label ''"),
        ("cola", "gj04\tyes\t\tA cat.\n", r"line 1: label 'yes' of CoLA must be 0 or 1"),
        ("rte", "sentence1\tsentence2\tlabel\na\tb\t1\n", r"label '1' of RTE must be entailment or not_entailment"),
        (
            "stsb",
            "sentence1\tsentence2\tscore\na\tb\thigh\n",
            r"line 2: label 'high' of STS-B must be a number from 0 to 5",
        ),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\tnan\n", r"line 2: label 'nan' of STS-B"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\t5.1\n", r"line 2: label '5.1' of STS-B"),
        (
            "rte",
            "sentence1\tsentence2\tlabel\na\tb\tentailment\nc\td\n",
            r"line 3: 2 columns, expected 3; repair or drop",
        ),
        ("sst2", "sentence\tlabel\na\tb\t1\n", r"line 2: 3 columns, expected 2"),
        ("sst2", b"sentence\tlabel\na\t1\ncaf\xe9\t1\n", r"dev\.tsv, line 3: not UTF-8"),
        ("sst2", "sentence\tlabel\n".encode("utf-16"), r"dev\.tsv, line 1: not UTF-8"),
        ("sst2", "sentence\u2028\tlabel\n", r"needs the columns \['sentence'\], found \['sentence\\u2028', 'label'\]"),
        ("sst2", "sentence\tlabel\na\t" + "y" * 10_000, r"label 'y+\.\.\.y+' of SST-2"),
    ],
)
def test_bad_file_is_refused_with_its_line(tmp_path, name, text, message):
    write(tmp_path, "dev.tsv", text)
    assert_refused(re.escape(str(tmp_path)) + ".*" + message, name, tmp_path)


def test_missing_folder_and_files_are_named(tmp_path):
    assert_refused(r"nowhere is not a folder: give the one that holds CoLA's tsv files", "cola", tmp_path / "nowhere")
    assert_refused(r"a\.tsv is not a folder", "cola", write(tmp_path, "a.tsv", "x"))
    assert_refused(r"dev_matched\.tsv is missing", "mnli", tmp_path, ["validation_matched"])
    (tmp_path / "dev.tsv").mkdir()
    assert_refused(r"dev\.tsv is missing: CoLA is read from dev\.tsv", "cola", tmp_path)


# The hub


def as_on_the_hub(task, rows, **changed):
    kinds = {**features(task), "idx": Value("int32")} | changed
    columns = dict(zip((*task.text_columns, "label", "idx"), zip(*rows, strict=True), strict=True))
    split = Dataset.from_dict(
        {name: list(values) for name, values in columns.items()}, features=datasets.Features(kinds)
    )
    return DatasetDict(dict.fromkeys(("train", *task.dev_splits, "test"), split))


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "demo"])
def test_hub_gives_what_the_folder_gives(tmp_path, monkeypatch, name):
    task = write_task(tmp_path, name)
    rows = [(*row, i) for i, row in enumerate(LAYOUTS[name][1])]
    asked = []
    monkeypatch.setattr(hub_reader, "load_dataset", lambda *args: asked.append(args) or as_on_the_hub(task, rows))
    hub, folder = load_task_data(task), load_task_data(task, tmp_path)
    assert asked == [("nyu-mll/glue", name)]
    assert tuple(hub) == tuple(folder)
    for split in folder:
        assert hub[split].features == folder[split].features
        assert rows_of(hub[split]) == rows_of(folder[split])
    assert tuple(load_task_data(task, splits=["train"])) == ("train",)


def test_hub_with_other_labels_is_refused(monkeypatch):
    task = get_task("rte")
    swapped = as_on_the_hub(task, [("a", "b", 0, 0)], label=ClassLabel(names=list(reversed(task.labels))))
    monkeypatch.setattr(hub_reader, "load_dataset", lambda *args: swapped)
    with pytest.raises(TrituneError, match=r"nyu-mll/glue gives RTE \(train\) as .*, expected "):
        load_task_data(task)


def test_hub_without_a_split_is_refused(monkeypatch):
    monkeypatch.setattr(hub_reader, "load_dataset", lambda *args: DatasetDict(train=Dataset.from_dict({"img": [0]})))
    with pytest.raises(TrituneError, match="uoft-cs/cifar10 has no split 'test'; there are train"):
        load_task_data(get_task("cifar10"))


def test_unreachable_hub_is_one_line_of_advice(monkeypatch):
    def unreachable(*args):
        raise ConnectionError("Couldn't reach 'nyu-mll/glue'\nsecond line")

    monkeypatch.setattr(hub_reader, "load_dataset", unreachable)
    message = r"cannot load CoLA from the hub \(Couldn't reach 'nyu-mll/glue'\): give its .* with --data FOLDER$"
    with pytest.raises(TrituneError, match=message) as error:
        load_task_data(get_task("cola"))
    assert "\n" not in str(error.value)
    with pytest.raises(TrituneError, match="Demo is not on the hub: give its tsv files with --data FOLDER"):
        load_task_data(get_task("demo"))


# Encoding


def test_encode_truncates_without_padding(tmp_path):
    task = get_task("demo")
    write(tmp_path, "dev.tsv", "sentence\tlabel\nthe cat sat\t1\na\t0\n\t1\n")
    data = load_glue_folder(task, tmp_path, ["validation"])["validation"]
    bars = datasets.are_progress_bars_disabled()
    encoded = encode(data, task.text_columns, tokenizer(), 4, task.title)
    assert encoded["input_ids"] == [[2, 4, 5, 3], [2, 7, 3], [2, 3]]
    assert encoded["attention_mask"] == [[1] * 4, [1] * 3, [1] * 2]
    assert encoded["labels"] == [1, 0, 1]
    assert {"sentence", "label"}.isdisjoint(encoded.column_names)
    assert not encoded.cache_files, "encoding stays in memory"
    assert datasets.are_progress_bars_disabled() == bars
    assert data.column_names == ["sentence", "label"], "the input is untouched"


def test_encode_is_quiet_for_small_sets(tmp_path, capfd):
    task = write_task(tmp_path, "cola")
    encode(load_glue_folder(task, tmp_path)["train"], task.text_columns, tokenizer(), 8, task.title)
    assert capfd.readouterr() == ("", "")


def test_encode_pairs_and_regression_labels(tmp_path):
    task = get_task("stsb")
    write(tmp_path, "dev.tsv", "sentence1\tsentence2\tscore\nthe cat\ta dog\t2.6\nthe cat sat\tdog\t0\n")
    data = load_glue_folder(task, tmp_path, ["validation"])["validation"]
    encoded = encode(data, task.text_columns, tokenizer(), 16, task.title)
    assert encoded["input_ids"] == [[2, 4, 5, 3, 7, 8, 3], [2, 4, 5, 6, 3, 8, 3]]
    batch = collator(tokenizer(), "longest", 16)([encoded[0], encoded[1]])
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == pytest.approx([2.6, 0.0])


def test_encode_wants_room_for_text(tmp_path):
    task = write_task(tmp_path, "rte")
    data = load_glue_folder(task, tmp_path)["train"]
    assert max(map(len, encode(data, task.text_columns, tokenizer(), 4, task.title)["input_ids"])) == 4
    with pytest.raises(TrituneError, match="max_length 3 leaves no room for text beside 3 special tokens"):
        encode(data, task.text_columns, tokenizer(), 3, task.title)


@pytest.mark.parametrize(("padding", "length"), [("max_length", 10), ("longest", 5)])
def test_collator_pads(tmp_path, padding, length):
    task = get_task("demo")
    write(tmp_path, "dev.tsv", "sentence\tlabel\nthe cat sat\t1\na\t0\n")
    encoded = encode(
        load_glue_folder(task, tmp_path, ["validation"])["validation"], task.text_columns, tokenizer(), 10, task.title
    )
    batch = collator(tokenizer(), padding, 10)([encoded[0], encoded[1]])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, length)
    assert batch["attention_mask"].sum(dim=1).tolist() == [5, 3]
    assert batch["input_ids"][1, 3:].eq(0).all()
    assert batch["labels"].dtype == torch.int64
    assert batch["labels"].tolist() == [1, 0]


def test_collator_refuses_what_it_cannot_pad():
    with pytest.raises(TrituneError, match="padding must be 'max_length' or 'longest', not 'max'"):
        collator(tokenizer(), "max", 8)
    with pytest.raises(TrituneError, match=r"has no padding token: set tokenizer\.pad_token"):
        collator(tokenizer(pad_token=None), "longest", 8)


# Real files


@pytest.mark.data
@pytest.mark.parametrize(
    ("title", "rows"),
    [
        ("CoLA", (8551, 1043)),
        ("MRPC", (3668, 408)),
        ("STS-B", (5749, 1500)),
        ("SST-2", (67349, 872)),
        ("QNLI", (None, 5463)),
    ],
)
def test_real_files(title, rows):
    folder, task = REAL / title, get_task(title)
    if not folder.is_dir():
        pytest.skip(f"no {title} files at {folder}: set TRITUNE_DATA")
    expected = {split: count for split, count in zip(("train", "validation"), rows, strict=True) if count}
    data = load_glue_folder(task, folder, list(expected))
    assert {split: len(part) for split, part in data.items()} == expected
    for split, part in data.items():
        lines = (folder / f"{split.replace('validation', 'dev')}.tsv").read_text("utf-8").split("\n")
        assert part[-1][task.text_columns[0]] in [line for line in lines if line][-1]
        labels = set(part["label"])
        assert all(0 <= score <= 5 for score in labels) if task.is_regression else labels == {0, 1}


def test_rows_that_break_off_in_the_published_qqp_are_left_out(tmp_path):
    write(tmp_path, "dev.tsv", "question1\tquestion2\tis_duplicate\na\tb\t1\nc\td\ne\tf\t0\n")
    with pytest.warns(UserWarning, match="1 rows with missing columns"):
        rows = load_glue_folder(get_task("qqp"), tmp_path, ["validation"])["validation"]
    assert rows["question1"][:] == ["a", "e"]
