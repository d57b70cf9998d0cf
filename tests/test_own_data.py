"""One's own tables: what is taken of them, what is refused and where, and the way from a file to a packed model."""

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import transformers
import yaml
from datasets import DatasetDict
from pyarrow import parquet
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from tritune.analysis.objective import objective
from tritune.cli import demo
from tritune.cli.show import show_task
from tritune.errors import TrituneError
from tritune.modeling.instrument import instrument
from tritune.tasks.data import load_task_data
from tritune.tasks.heads import TEXT_CLASSIFICATION, EncodedData
from tritune.tasks.registry import get_task, own_task
from tritune.tasks.task_file import read_task_file, task_record, task_to_yaml

KIND = "text-classification"
SHORT = ("max_steps=4", "eval_steps=2", "per_device_train_batch_size=4", "learning_rate=1e-3")


def csv_text(rows: list[dict]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def write(path: Path, rows: list[dict]) -> Path:
    """The rows in the format of the file's ending."""
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
        return path
    text = {
        ".csv": lambda: csv_text(rows),
        ".tsv": lambda: csv_text(rows).replace(",", "\t"),
        ".jsonl": lambda: "".join(json.dumps(row) + "\n" for row in rows),
        ".json": lambda: json.dumps(rows, indent=1),
    }[path.suffix]()
    path.write_text(text, encoding="utf-8")
    return path


def table(labels: list, subject: str = "the dog", **more: list) -> list[dict]:
    """A row for each label, with a text of its own."""
    columns = {"text": [f"{subject} number {i}" for i in range(len(labels))], "label": labels, **more}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def task_of(folder: Path, train: list, dev: list | None = None, ending: str = ".jsonl", **options):
    """The task of a train and a dev file with these labels."""
    files = {"train": write(folder / f"train{ending}", table(train))}
    files["validation"] = write(folder / f"dev{ending}", table(train[::-1] if dev is None else dev, "a cat"))
    return own_task(KIND, files, **options)


def labels_of(task, split: str = "train") -> list:
    return list(load_task_data(task)[split]["label"])


# labels as a file has them, the problem they pose, the names, and what the model is given
READINGS = {
    "words": (["pos", "neg", "pos"], "single_label", ("neg", "pos"), [1, 0, 1]),
    "ints_in_order_of_number": ([10, 9, 2], "single_label", ("2", "9", "10"), [2, 1, 0]),
    "digits": (["10", "9", "2"], "single_label", ("2", "9", "10"), [2, 1, 0]),
    "whole_floats": ([1.0, 0.0, 1.0], "single_label", ("0", "1"), [1, 0, 1]),
    "truth": ([True, False, True], "single_label", ("false", "true"), [1, 0, 1]),
    "spaces": ([" a", "b ", "a"], "single_label", ("a", "b"), [0, 1, 0]),
    "scores": ([0.5, -2, 1e3], "regression", None, [0.5, -2.0, 1000.0]),
    "spelt_scores": (["0.5", "-2", "1e3"], "regression", None, [0.5, -2.0, 1000.0]),
    "lists": ([["b", "a"], [], ["b"]], "multi_label", ("a", "b"), [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]),
    "parted": (["b|a", "", "b"], "multi_label", ("a", "b"), [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]),
    "lists_of_ints": ([[10, 9], [9]], "multi_label", ("9", "10"), [[1.0, 1.0], [1.0, 0.0]]),
}


@pytest.mark.parametrize("name", READINGS)
def test_labels_as_they_are_read(tmp_path, name):
    values, problem, names, given = READINGS[name]
    task = task_of(tmp_path, values)
    assert (task.problem, task.labels) == (problem, names)
    assert labels_of(task) == given and labels_of(task, "validation") == given[::-1]


def test_an_option_beats_the_guess(tmp_path):
    assert task_of(tmp_path, [1, 2, 1], problem="regression").is_regression
    assert task_of(tmp_path, ["0.5", "1", "1"], problem="single_label").labels == ("0.5", "1")
    assert task_of(tmp_path, ["a", "b", "a"], problem="multi_label").multi_label
    assert labels_of(task_of(tmp_path, ["b", "a", "b"], labels=("b", "a"))) == [0, 1, 0]
    assert labels_of(task_of(tmp_path, [0, 1], labels=("LABEL_0", "LABEL_1"))) == [0, 1]
    assert task_of(tmp_path, ["a", "b"], metric="macro_f1").metric == "macro_f1"
    with pytest.raises(
        TrituneError, match="metric: 'f1' is not one of the metrics of single_label: accuracy, macro_f1"
    ):
        task_of(tmp_path, ["a", "b"], metric="f1")


def test_a_column_for_each_label(tmp_path):
    rows = table([0, 1, 1], rude=["1", "0", "0"], late=[1.0, 0.0, 1.0])
    path = write(tmp_path / "rows.csv", rows)
    task = own_task(KIND, {"train": path}, label_column="rude, late")
    assert (task.text_columns, task.labels, task.multi_label) == (("text", "label")[:1], ("rude", "late"), True)
    assert list(load_task_data(task, splits=["train"])["train"]["label"]) == [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]
    known = own_task(KIND, {"train": path}, None, "rude,late", labels=("late", "rude"))
    assert list(load_task_data(known, splits=["train"])["train"]["label"])[2] == [1.0, 0.0]
    with pytest.raises(TrituneError, match="'rude', 'late' are not the labels: 'late', 'early'"):
        load_task_data(own_task(KIND, {"train": path}, None, "rude,late", labels=("late", "early")), splits=["train"])


# labels as a file has them, the names that a model knows, and what it is given
IDS = {
    "whole_numbers": ([1, 0, 1], ("neg", "pos"), [1, 0, 1]),
    "digits": (["1", "0", "1"], ("neg", "pos"), [1, 0, 1]),
    "of_pandas": (["1.0", "0.0", "1.0"], ("neg", "pos"), [1, 0, 1]),
    "floats": ([1.0, 0.0, 1.0], ("neg", "pos"), [1, 0, 1]),
    "generic": ([2, 0, 1], ("LABEL_0", "LABEL_1", "LABEL_2"), [2, 0, 1]),
    "not_all_of_them": ([2, 2, 0], ("a", "b", "c", "d"), [2, 2, 0]),
    "many": ([[1, 0], [], ["1"]], ("a", "b"), [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]),
    "many_in_a_cell": (["1|0", "", "1.0"], ("a", "b"), [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]),
    "names_that_are_numbers": ([1, 2, 1], ("2", "1"), [1, 0, 1]),
}


@pytest.mark.parametrize("name", IDS)
def test_ids_in_place_of_names(tmp_path, capsys, name):
    values, names, given = IDS[name]
    task = task_of(tmp_path, values, labels=names, problem="multi_label" if "many" in name[:4] else None)
    by_name = name == "names_that_are_numbers"
    assert task.labels == names and task.by_id is not by_name
    assert labels_of(task) == given and labels_of(task, "validation") == given[::-1]
    show_task(task)
    assert (", given by their ids from 0, in label;" in " ".join(capsys.readouterr().err.split())) is not by_name


@pytest.mark.parametrize(
    ("train", "dev", "message"),
    [
        ([0, 1], [0, 2], "dev.jsonl, row 2: the label '2' is not one of the labels"),
        ([0, 1], [0, -1], "dev.jsonl, row 2: the label '-1' is not one of the labels"),
        ([0, 7], [0, 1], "train.jsonl, row 2: the label '7' is not one of the labels"),
        (["neg", "1"], ["neg", "pos"], "train.jsonl, row 2: the label 'label' is a number"),
        (["neg", "pos"], [0, 1], "dev.jsonl, row 1: the label '0' is not one of the labels"),
        ([0.5, 1], [0, 1], "train.jsonl, row 1: the label '0.5' is not one of the labels"),
    ],
)
def test_ids_are_not_guessed_where_names_are_given(tmp_path, train, dev, message):
    with pytest.raises(TrituneError, match=message):
        load_task_data(task_of(tmp_path, train, dev, labels=("neg", "pos")))


def test_words_for_a_model_whose_labels_have_no_names(tmp_path):
    task = task_of(tmp_path, ["pos", "neg"], labels=("LABEL_0", "LABEL_1"))
    with pytest.raises(TrituneError, match="'LABEL_0', 'LABEL_1'; name those in id order with --labels"):
        load_task_data(task)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    rows = [
        {"premise": "it rains\u2028here", "hypothesis": '"wet"', "y": "yes", "note": "1"},
        {"premise": "a b c", "hypothesis": "dry", "y": "no", "note": "2"},
    ]
    if ending == ".tsv":
        rows[0]["hypothesis"] = "wet"
    dev = [{**row, "premise": f"so {row['premise']}"} for row in rows]
    files = {"train": write(tmp_path / f"a{ending}", rows), "validation": write(tmp_path / f"b{ending}", dev)}
    task = own_task(KIND, files, None, "y")
    assert (task.text_columns, task.labels) == (("premise", "hypothesis"), ("no", "yes"))
    read = load_task_data(task)
    assert [dict(row) for row in read["train"]] == [
        {"premise": row["premise"], "hypothesis": row["hypothesis"], "label": int(row["y"] == "yes")} for row in rows
    ]
    assert list(read["validation"]["premise"]) == [row["premise"] for row in dev]


# labels of train and dev, and what the message must hold
BAD_LABELS = {
    "unseen": (["a", "b"], ["a", "b", "c"], "dev.jsonl, row 3: the label 'c' is not one of the labels in training"),
    "one_class": (["a", "a"], ["a", "b"], "train.jsonl: the only label is 'a' (column 'label'); at least two"),
    "constant": ([0.5, 0.5], [1.5, 1.0], "train.jsonl: every row has the label 0.5; there is nothing to learn"),
    "missing": (["a", None, "b"], None, "train.jsonl, row 2: the label 'label' is empty; fill it in or drop the row"),
    "blank": (["a", "  ", "b"], None, "train.jsonl, row 2: the label 'label' is empty"),
    "missing_in_dev": (["a", "b"], ["a", None], "dev.jsonl, row 2: the label 'label' is empty"),
    "nan": ([0.5, float("nan")], None, "train.jsonl, row 2: the label 'label' is nan"),
    "spelt_nan": (["0.5", "NaN"], None, "train.jsonl, row 2: the label 'label' is 'NaN'"),
    "infinite_in_dev": ([0.5, 1], [0.5, float("inf")], "dev.jsonl, row 2: the label 'label' is inf"),
    "mixed": ([1, 2, "n/a"], None, "row 3: the label 'label' is text ('n/a'), in row 1 it is a number (1); make them"),
    "mixed_with_lists": ([["a"], "b", 3], None, "row 3: the labels 'label' must be a list, or names separated by |"),
    "score_for_a_word": ([0.5, 1], [0.5, "good"], "dev.jsonl, row 2: the label 'label' must be a number, found 'good'"),
    "an_object": ([{"a": 1}, {"a": 2}], None, "row 1: the label 'label' must be text or a number, without |; found {"),
    "missing_list": ([["a"], None, ["b"]], None, "row 2: the labels 'label' must be a list, or names separated by |"),
    "no_label_at_all": ([[], []], [["a"], []], "train.jsonl: no row has a label (column 'label')"),
    "ids": ([f"id{i}" for i in range(30)], None, "train.jsonl: 'label' has 30 different values in 30 rows, too many"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_labels_name_file_and_row(tmp_path, name):
    train, dev, message = BAD_LABELS[name]
    with pytest.raises(TrituneError) as refusal:
        load_task_data(task_of(tmp_path, train, dev))
    assert message in str(refusal.value) and str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


GOOD = "text,label\nthe dog,a\nthe cat,b\n"
# content of train.csv, options, and the message after the file's name
BAD_FILES = {
    "no_label_column": ("text,y\na,1\n", {}, ": no column 'label'; there are 'text', 'y'; say with --label-column"),
    "no_such_label": (GOOD, {"label_column": "y"}, ": no column 'y'; there are 'text', 'label'"),
    "no_such_text": (GOOD, {"columns": ["body"]}, ": no column 'body'; there are 'text'"),
    "no_text_known": ("a,b,label\nx,y,1\n", {}, ": say with --text-columns which of 'a', 'b' hold the text"),
    "half_empty": ("text,label\nx,a\n,b\n,a\n", {}, ", row 2: 'text' is empty, as in 2 of 3 rows; fill it in or drop"),
    "numbers": (
        "text,label\n1.5,a\n2,b\n",
        {},
        ", row 1: 'text' holds numbers (1.5), not text; name the text's column",
    ),
    "empty": ("", {}, ": holds no rows"),
    "only_a_header": ("text,label\n", {}, ": holds no rows"),
    "cut_row": ("text,label\nx,a\ny\n", {}, ", line 3: 1 fields, the header has 2; repair or drop the row"),
    "not_utf8": (b"text,label\n\xff,a\n", {}, ", line 2: not UTF-8 text"),
    "twice": ("text,text,label\na,b,c\n", {}, ", line 1: the header has 'text' more than once"),
    "several_columns": ("text,a,b\nx,1,0\n", {"label_column": "a,b", "problem": "regression"}, "are several columns"),
    "no_such_problem": (GOOD, {"problem": "ranking"}, "problem: 'ranking' is not one of single_label, multi_label"),
    "three_texts": (GOOD, {"columns": ["a", "b", "c"]}, "--text-columns takes one or two columns"),
    "nothing_left": ("label\na\nb\n", {}, ": there is no column for the text"),
    "text_is_label": (GOOD, {"columns": ["label"]}, ": no column 'label'; there are 'text'"),
    "flags": (
        "text,a,b\nx,1,0\ny,2,0\n",
        {"label_column": "a,b"},
        ", row 2: the column 'a' of a label must hold 0 or 1",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_name_file_and_row(tmp_path, name):
    content, options, message = BAD_FILES[name]
    path = tmp_path / "train.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TrituneError) as refusal:
        load_task_data(own_task(KIND, {"train": path}, **options), splits=["train"])
    assert (f"{path}{message}" if message[0] in ":," else message) in str(refusal.value)


def test_numbers_in_json_are_no_texts(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "x", "label": "a"}, {"text": 3, "label": "b"}])
    with pytest.raises(TrituneError, match=r"a.jsonl, row 2: 'text' must be text, found 3"):
        load_task_data(own_task(KIND, {"train": path}), splits=["train"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"text": "a"},\n 3]', "a.json, row 2: not a JSON object"),
        ("a.json", '[{"text": "a"},\n', "a.json, line 2: not a JSON list of objects"),
        ("a.parquet", "no parquet", "a.parquet: not Parquet"),
        ("a.xlsx", "x", "a.xlsx: unknown kind of file; known are .csv, .tsv, .jsonl, .json, .txt, .parquet"),
    ],
)
def test_files_of_other_kinds(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(TrituneError, match=message):
        own_task(KIND, {"train": tmp_path / name})


def test_the_dev_file_is_another_file(tmp_path):
    train = write(tmp_path / "train.csv", table(["a", "b"]))
    copy, link = tmp_path / "copy.csv", tmp_path / "link.csv"
    copy.write_bytes(train.read_bytes())
    link.symlink_to(train)
    for dev in (train, copy, link):
        with pytest.raises(TrituneError, match="the dev file is the train file"):
            own_task(KIND, {"train": train, "validation": dev})
    with pytest.raises(TrituneError, match=r"gone.csv: there is no such file"):
        own_task(KIND, {"train": train, "validation": tmp_path / "gone.csv"})


@pytest.mark.parametrize("name", READINGS)
def test_a_task_file_gives_the_task_back(tmp_path, name):
    task = task_of(tmp_path, READINGS[name][0])
    path = tmp_path / "task.yaml"
    path.write_text(task_to_yaml(task), encoding="utf-8")
    again = get_task(str(path))
    assert again == task and task_record(again) == task_record(task)
    # What is written down wins over what would be found.
    if task.labels:
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"labels": list(task.labels[::-1])}))
        assert get_task(str(path)).labels == task.labels[::-1]


def test_a_task_file_never_reads_where_the_shell_is(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("text,label\na,0\nb,1\n")
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / "task.yaml"
    path.write_text("kind: text-classification\ntrain_file: data/train.csv\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrituneError, match=r"other/data/train\.csv: there is no such file"):
        get_task(str(path))


def test_a_task_file_by_hand(tmp_path):
    write(tmp_path / "train.csv", table([0, 1]))
    path = tmp_path / "mine.yml"
    path.write_text("kind: text-classification\ntrain_file: train.csv\nlabels: [1, 0]\ncolumns: text\n")
    task = get_task(str(path))
    assert task.files == {"train": tmp_path / "train.csv"} and task.labels == ("1", "0")
    with pytest.raises(TrituneError, match=r"no rows are left for the dev part: .*; or give --dev-file"):
        load_task_data(task)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train_file: a.csv", "the key kind is missing"),
        ("kind: text-classification\ntrainfile: a.csv", "unknown key 'trainfile'; did you mean 'train_file'"),
        ("kind: [1]", "kind must be text, got"),
        ("kind: x\nlabels: [yes, no]", "labels must be a list of names, got"),
        ("kind: x\nlabels: [a, a]", "labels lists a name twice"),
        ("- a", "a task file is a list of `key: value` lines"),
        ("a: [", "line 1: not YAML"),
    ],
)
def test_bad_task_files(tmp_path, text, message):
    path = tmp_path / "task.yaml"
    path.write_text(text)
    with pytest.raises(TrituneError) as refusal:
        read_task_file(path)
    assert str(refusal.value).startswith(str(path)) and message in str(refusal.value)
    with pytest.raises(TrituneError, match=r"none.yaml: cannot be read"):
        get_task(str(tmp_path / "none.yaml"))


def test_a_model_that_was_made_for_something_else(tmp_path):
    task = task_of(tmp_path, ["a", "b", "a"])
    for config, message in (
        (BertConfig(id2label={0: "b", 1: "a"}), "are in the order"),
        (BertConfig(id2label={0: "x", 1: "y"}), "the model's labels are 'x', 'y'"),
        (BertConfig(id2label={0: "a", 1: "b"}, problem_type="multi_label_classification"), "made for multi_label"),
        (BertConfig(num_labels=3), "3 labels"),
    ):
        with pytest.raises(TrituneError, match=message):
            TEXT_CLASSIFICATION.check(config, task, "model")
    TEXT_CLASSIFICATION.check(BertConfig(num_labels=2), task, "model")


def test_the_loss_of_many_labels_is_that_of_transformers():
    """What analyses differentiate as the task's own loss."""
    config = BertConfig(
        num_labels=3, problem_type="multi_label_classification", hidden_size=8, num_hidden_layers=1, intermediate_size=8
    )
    config.num_attention_heads, config.vocab_size = 2, 20
    model = instrument(BertForSequenceClassification(config)).eval()
    batch = {"input_ids": torch.tensor([[3, 4, 5], [6, 7, 8]]), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
    batch["labels"] = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(objective("ground_truth", batch)(model), model(**batch).loss)


def test_closeness_of_many_labels(tmp_path):
    task = task_of(tmp_path, [["a"], ["b"]])
    student, teacher = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.tensor([[2.0, -1.0], [-0.5, 3.0]])
    data = EncodedData(DatasetDict(), dict, {}, "validation")
    close = task.head.closeness(student.numpy(), teacher.numpy(), task, data)
    p, q = teacher.double().sigmoid(), student.double().sigmoid()
    divergence = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(-1).mean()
    assert close == pytest.approx({"agreement": 0.5, "kl_to_teacher": divergence.item()})


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TRAIN_ROWS", 100)
        patch.setattr(demo, "DEV_ROWS", 20)
        demo._write_inputs(folder, seed=0)
    return folder / "base"


def options(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


STORIES = {
    "classes": (".csv", lambda i: "xyz"[i % 3], {"accuracy", "macro_f1", "agreement"}),
    "many": (".jsonl", lambda i: ["x"] * (i % 2) + ["y"] * (i % 3 == 0), {"micro_f1", "subset_accuracy", "agreement"}),
    "score": (".parquet", lambda i: i / 8, {"mean_pearson_spearman", "mse_to_teacher"}),
}


@pytest.mark.parametrize("story", STORIES)
def test_from_a_file_to_a_packed_model(cli, base, tmp_path, story, monkeypatch):
    """Fine-tune, distil, predict, convert, evaluate; in torch, the packed model scores what the run wrote down."""
    ending, label, names = STORIES[story]
    texts = ["the dog", "a cat", "the king", "one boy", "these girls", "the pilots"]
    rows = [{"text": f"{texts[i % 6]} sleeps {texts[i % 5]}", "y": label(i)} for i in range(12)]
    train, dev = write(tmp_path / f"train{ending}", rows), write(tmp_path / f"dev{ending}", rows[3:])
    own = ("--task", KIND, "--train-file", train, "--dev-file", dev, "--label-column", "y")
    teacher, run, packed = (tmp_path / name for name in ("teacher", "run", "packed"))
    code, _, err = cli("finetune", base, *own, "--output", teacher, *options(*SHORT))
    assert code == 0 and f"text-classification of dev{ending}: text to" in err
    again = cli("train", teacher, *own, "--dry-run", "--output", tmp_path / "dry", *options(*SHORT))
    assert again[0] == 0 and not (tmp_path / "dry").exists()
    task = teacher / "task.yaml"
    assert (
        cli("train", teacher, "--task", task, "--output", run, *options(*SHORT, "ground_truth_coefficient=1"))[0] == 0
    )
    assert (run / "task.yaml").read_text() == task.read_text() and str(tmp_path) in task.read_text()
    assert KIND in (run / "README.md").read_text() and "glue" not in (run / "README.md").read_text()
    assert cli("convert", run, "--output", packed)[0] == 0 and not (packed / "task.yaml").exists()
    metrics = json.loads((run / "metrics.json").read_text())
    assert str(train) not in json.dumps(metrics["data"])
    monkeypatch.setenv("TRITUNE_ENGINE", "reference")
    for asked in (("--task", task), ("--task", KIND, "--dev-file", dev, "--label-column", "y")):
        code, out, err = cli("evaluate", packed, *asked, "--teacher", teacher, "--json")
        assert code == 0, err
        scores = json.loads(out)
        assert names <= scores.keys() and all(scores[name] == metrics["last"][name] for name in names)
    monkeypatch.delenv("TRITUNE_ENGINE")
    code, out, err = cli(
        "predict", packed, "--input", dev, "--text-columns", "text", "--output", tmp_path / "out.jsonl"
    )
    answers = [json.loads(line)["prediction"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    kinds = {"classes": lambda a: a in "xyz", "many": lambda a: set(a) <= {"x", "y"}, "score": lambda a: a == float(a)}
    assert code == 0 and len(answers) == 9 and all(map(kinds[story], answers))
    assert cli("report", run, "--output", tmp_path / "page.html")[0] == 0
    assert f"--task {run}/task.yaml" in (tmp_path / "page.html").read_text()


def test_predict_gives_every_label_that_is_likely(base, tmp_path, cli):
    """A classifier without weights answers with its biases."""
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        id2label={0: "a", 1: "b", 2: "c"},
        problem_type="multi_label_classification",
        ignore_mismatched_sizes=True,
    )
    torch.nn.init.zeros_(model.classifier.weight)
    model.classifier.bias.data = torch.tensor([1.0, -1.0, 0.25])
    for file in base.iterdir():
        (tmp_path / "many").mkdir(exist_ok=True)
        (tmp_path / "many" / file.name).write_bytes(file.read_bytes())
    model.save_pretrained(tmp_path / "many")
    code, out, _ = cli("predict", tmp_path / "many", "--probabilities", stdin=b"the dog\n")
    row = next(csv.DictReader(io.StringIO(out)))
    assert code == 0 and row["prediction"] == "a|c"
    found = [float(row[f"probability_{name}"]) for name in "abc"]
    assert found == pytest.approx(torch.tensor([1.0, -1.0, 0.25]).sigmoid().tolist(), abs=1e-6)
    cli("predict", tmp_path / "many", "--output", tmp_path / "out.jsonl", stdin=b"the dog\n")
    assert json.loads((tmp_path / "out.jsonl").read_text())["prediction"] == ["a", "c"]


REFUSALS = {
    "a_kind_alone": (
        ("--task", KIND),
        "is a kind of task: give a task file, or its files with",
    ),
    "no_dev": (("--task", KIND, "--train-file", "train.csv"), "no rows are left for the dev part"),
    "no_train": (("--task", KIND, "--dev-file", "dev.csv"), "--train-file is missing"),
    "of_the_table": (("--task", "sst2", "--train-file", "train.csv"), "--task sst2: a task of the table"),
    "unknown": (("--task", "sst3", "--train-file", "train.csv"), "there is no task 'sst3': did you mean 'sst2'?"),
    "data_too": (
        ("--task", KIND, "--train-file", "train.csv", "--dev-file", "dev.csv", "--data", "."),
        "has its own files; omit --data",
    ),
    "inside": (
        ("--task", KIND, "--train-file", "out/train.csv", "--dev-file", "dev.csv"),
        "the output folder is also an input",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_of_the_command_line(cli, base, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    for path, labels in (("train.csv", "ab"), ("dev.csv", "ba"), ("out/train.csv", "ab")):
        write(tmp_path / path, table(list(labels)))
    if name != "inside":
        (tmp_path / "out" / "train.csv").unlink()
    arguments, message = REFUSALS[name]
    code, _, err = cli("finetune", base, *arguments, "--output", "out", *options(*SHORT))
    assert code == 2 and message in err.splitlines()[-1], err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["train.csv"] * (name == "inside")


def test_a_run_does_not_go_on_with_other_data(cli, base, tmp_path):
    train, dev = (write(tmp_path / f"{name}.csv", table(["a", "b"] * n)) for name, n in (("train", 4), ("dev", 3)))
    own = ("--task", KIND, "--train-file", train, "--dev-file", dev)
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    assert cli("finetune", base, *own, "--output", teacher, *options(*SHORT))[0] == 0
    assert cli("train", teacher, *own, "--output", run, *options(*SHORT))[0] == 0
    assert cli("train", teacher, *own, "--output", run, *options(*SHORT), "--resume")[0] == 0
    write(train, table(["b", "a"] * 4))
    for command, source, output in (("finetune", base, teacher), ("train", teacher, run)):
        code, _, err = cli(command, source, *own, "--output", output, *options(*SHORT), "--resume")
        assert code == 2
        assert "--resume: the run there was made of other rows (train: 8 rows then, 8 others now)" in err
    code, _, err = cli("train", teacher, "--task", KIND, "--train-file", dev, "--dev-file", dev, "--output", run)
    assert code == 2 and "the dev file is the train file" in err


def test_labels_that_the_teacher_does_not_know(cli, base, tmp_path):
    train, dev = (write(tmp_path / f"{name}.csv", table(["b", "a"] * n)) for name, n in (("train", 4), ("dev", 3)))
    own = ("--task", KIND, "--train-file", train, "--dev-file", dev)
    assert cli("finetune", base, *own, "--output", tmp_path / "teacher", *options(*SHORT))[0] == 0
    write(train, table(["a", "c"] * 4))
    code, _, err = cli("train", tmp_path / "teacher", *own, "--output", tmp_path / "run", *options(*SHORT))
    assert code == 2 and f"{train}, row 2: the label 'c' is not one of the labels: 'a', 'b'" in err
    assert not (tmp_path / "run").exists()
    # The order is the model's, whatever the file's is: of a file with one label of the two as well.
    write(dev, table(["b"] * 3))
    code, out, err = cli("evaluate", tmp_path / "teacher", "--task", KIND, "--dev-file", dev, "--json")
    assert code == 0 and json.loads(out)["rows"] == 3, err


def test_analyses_and_exports_take_a_task_file(cli, base, tmp_path):
    train, dev = (write(tmp_path / f"{name}.jsonl", table([["a"], ["a", "b"]] * n)) for name, n in (("t", 4), ("d", 3)))
    own = ("--task", KIND, "--train-file", train, "--dev-file", dev)
    teacher = tmp_path / "teacher"
    assert cli("finetune", base, *own, "--output", teacher, *options(*SHORT))[0] == 0
    task = ("--task", teacher / "task.yaml")
    code, out, err = cli("export", teacher, "--format", "dense", "--output", tmp_path / "dense", *task, "--json")
    assert code == 0 and json.loads(out)["verify"]["agreement"] == 1, err
    code, _, err = cli("analyze", "sensitivity", "--model", teacher, *task, "--output", tmp_path / "s")
    assert code == 0, err
    write(dev, table([["a"], ["c"]]))
    code, _, err = cli("export", teacher, "--format", "dense", "--output", tmp_path / "new", *task)
    assert code == 2 and f"{dev}, row 2" in err and not (tmp_path / "new").exists()


def test_labels_named_on_the_command_line(cli, base, tmp_path):
    """Of a teacher that calls them LABEL_0 and LABEL_1, and of one without a classifier."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model.save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "teacher")
    words = write(tmp_path / "dev.csv", table(["neg", "pos", "pos", "neg"]))
    ids = write(tmp_path / "ids.csv", table(["0.0", "1.0", "1.0", "0.0"]))
    arguments = ("evaluate", tmp_path / "teacher", "--task", KIND, "--json", "--dev-file")
    code, _, err = cli(*arguments, words)
    assert code == 2 and "name those in id order with --labels" in err
    found = []
    for file, names in ((words, ("--labels", "neg, pos")), (ids, ("--labels", "neg,pos")), (ids, ())):
        code, out, err = cli(*arguments, file, *names)
        assert code == 0 and ("given by their ids" in err) is (file == ids), err
        found.append(json.loads(out)["accuracy"])
    assert found[0] == found[1] == found[2]
    for names, message in (("neg,neg", "a name of its own"), ("a,b,c", "has 2 labels"), ("a,", "a name of its own")):
        code, _, err = cli(*arguments, ids, "--labels", names)
        assert code == 2 and message in err, err
    for name, kind in (("headless", "BertModel"), ("masked", "BertForMaskedLM")):
        AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / name)
        getattr(transformers, kind)(model.config).save_pretrained(tmp_path / name)
        code, _, err = cli("evaluate", tmp_path / name, "--task", KIND, "--dev-file", words)
        reason = f"a {kind}, which has no head for text-classification; fine-tune it first: tritune finetune"
        assert code == 2 and reason in " ".join(err.split()) and "row 1" not in err, err
