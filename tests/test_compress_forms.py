"""The forms and kinds of data: what each is taken for, what is set aside, and what is refused; nothing is trained."""

import json
import shutil
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from filelock import FileLock
from PIL import Image as Pillow
from transformers import BertConfig, ViTConfig

import pictures
import small_answers
import tritune
from tritune.compression import forms
from tritune.compression.forms import read_data
from tritune.compression.kinds import kind_of
from tritune.compression.request import Request
from tritune.errors import TrituneError
from tritune.tasks.data.splitting import split

CONLL = "".join(
    f"-DOCSTART- -X- O O\n\nAda{i} NNP I-PER\nnaps VB O\n\nIn IN O\nComo{i} NNP I-LOC\n\n" for i in range(6)
)


def understood(path: str | Path, task: str | None = None, **more):
    request = Request("m", path, task=task, **more)
    reading = read_data(path, task)
    return kind_of(reading, task).of(reading, request)


def asked(number: int, **more) -> dict:
    row = {"id": f"q{number}", "question": "who naps?", "context": f"{number} Ada naps."}
    return row | {"answers": {"text": ["Ada"], "answer_start": [len(str(number)) + 1]}} | more


def json_lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


TOKENS = [{"tokens": ["Ada", str(i)], "tags": ["B-PER", "O"], "doc": i % 4} for i in range(12)]
TEXTS = [{"text": f"text {i} x", "label": i % 2} for i in range(12)]
LINES = "".join(f"the dog {i} sees\n" for i in range(12))
# name of a file, its content, and what it is taken for
TAKEN = {
    "table": ("a.csv", "text,label\n" + "".join(f"text {i} x,{i % 2}\n" for i in range(12)), "text-classification"),
    "json": ("a.jsonl", json_lines(TEXTS), "text-classification"),
    "lists_of_labels": ("a.jsonl", json_lines([{"text": f"x {i} y", "tags": ["a", "b"][: i % 3]} for i in range(12)]),
                        "text-classification"),
    "tokens": ("a.jsonl", json_lines(TOKENS), "token-classification"),
    "conll": ("a.conll", CONLL, "token-classification"),
    "conll_as_text": ("a.txt", CONLL.replace("-PER", "-per"), "token-classification"),
    "squad": ("a.json", json.dumps(small_answers.squad([(f"{i} Ada naps.", [
        small_answers.question(f"q{i}", "who?", f"{i} Ada naps.", "Ada")]) for i in range(12)])), "question-answering"),
    "questions": ("a.jsonl", json_lines([asked(i) for i in range(12)]), "question-answering"),
    "lines": ("a.txt", LINES, "feature-extraction"),
    "lines_as_table": ("a.csv", "note\n" + LINES, "feature-extraction"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_what_data_is_taken_for(tmp_path, name):
    file, content, kind = TAKEN[name]
    (tmp_path / file).write_text(content)
    found = understood(tmp_path / file)
    assert found.task_kind == kind and len(found.examples) == 12 and found.remarks == []
    parts = split(found.examples, 0).rows
    for side, rows in parts.items():
        found.write(tmp_path, side, rows)
    labels = None if found.labels is None else tuple(found.labels)
    for task in (found.task(tmp_path, labels), found.task(tmp_path, labels, test=True)):
        assert task.head.name == kind
        read = task.head.read_files(task, list(task.files))
        assert len(read["validation"]) in map(len, parts.values())


def test_images_of_every_form(tmp_path):
    folder = pictures.make_folder(tmp_path / "photos", 5, names=("cat", "dog"))
    shutil.copy(folder / "cat" / "0.png", folder / "dog" / "twin.png")
    Pillow.new("F", (4, 4)).save(folder / "dog" / "floats.tiff")
    (folder / "dog" / "nothing.png").touch()
    (folder / "__MACOSX").mkdir()
    pictures.make_parquet(tmp_path / "photos.parquet", 12, labels=("cat", "dog"))
    found = understood(folder)
    assert found.task_kind == "image-classification" and found.labels == {"cat": 5, "dog": 6}
    assert [(one.line, one.reason[:21]) for one in found.remarks if not one.kept] == [
        ("dog/floats.tiff", "its pixels are floats"),
        ("dog/nothing.png", "not an image that can"),
    ]
    assert "the file is empty" in found.remarks[1].reason
    assert {one.line: one.reason for one in found.remarks if one.kept} == {
        "cat/0.png": "the same image has another label: 'dog' in dog/twin.png",
        "dog/twin.png": "the same image has another label: 'cat' in cat/0.png",
    }
    sides = split(found.examples, 0).rows.values()
    twins = [{row.line for row in side} & {"cat/0.png", "dog/twin.png"} for side in sides]
    assert sorted(map(len, twins)) == [0, 0, 2]
    assert understood(tmp_path / "photos.parquet").labels == {"cat": 6, "dog": 6}
    config = ViTConfig(architectures=["ViTForImageClassification"], id2label={0: "dog", 1: "cat"})
    assert found.teacher(config) == ("dog", "cat")


def test_rows_that_cannot_be_used_are_named(tmp_path):
    tokens = [*TOKENS, {"tokens": ["Ada", "naps"], "tags": ["O"]}, {"tokens": [], "tags": []}]
    (tmp_path / "a.jsonl").write_text(json_lines(tokens))
    reasons = [(one.line, one.reason) for one in understood(tmp_path / "a.jsonl").remarks]
    assert reasons == [
        (13, "2 words and 1 tags; every word needs one"),
        (14, "its words must be a list of texts, found []"),
    ]
    (tmp_path / "a.conll").write_text(CONLL + "Ada NNP\nnaps VB O\n")
    (remark,) = understood(tmp_path / "a.conll").remarks
    assert remark.reason == "2 columns, expected 3: word … tag"
    rows = [*map(asked, range(12)), asked(12, answers={"text": ["Bob"], "answer_start": [0]}), asked(0)]
    rows += [asked(13, answers={"text": [], "answer_start": []})]
    (tmp_path / "b.jsonl").write_text(json_lines(rows))
    found = understood(tmp_path / "b.jsonl")
    assert [one.line for one in found.remarks] == [13, 14] and "is not at character 0" in found.remarks[0].reason
    assert "occurs twice" in found.remarks[1].reason and found.unanswered == 1


def test_blank_lines_are_no_bad_rows(tmp_path):
    (tmp_path / "a.txt").write_bytes(("\n" + LINES.replace("\n", "\r\n\r\n")).encode("utf-16"))
    found = understood(tmp_path / "a.txt")
    assert len(found.examples) == 12 and found.reading.encoding == "utf-16"
    assert found.examples[0].line == 2 and any("blank lines are left out" in note for note in found.notes)


def test_groups_and_times_of_columns_hold_for_other_kinds(tmp_path):
    (tmp_path / "a.jsonl").write_text(json_lines(TOKENS))
    found = understood(tmp_path / "a.jsonl")
    sides = split(found.examples, 0, group="doc").rows
    assert sorted(len({row.cells["doc"] for row in side}) for side in sides.values()) == [1, 1, 2]
    (tmp_path / "b.jsonl").write_text(json_lines([asked(i, day=f"2024-01-{i + 1:02}") for i in range(20)]))
    found = understood(tmp_path / "b.jsonl")
    assert [row.cells["id"] for row in split(found.examples, 0, time="day").rows["test"]] == [
        "q16",
        "q17",
        "q18",
        "q19",
    ]


def test_a_tagger_may_know_more_tags(tmp_path):
    (tmp_path / "a.jsonl").write_text(json_lines(TOKENS))
    found = understood(tmp_path / "a.jsonl")

    def teacher(*names, kind="BertForTokenClassification"):
        return found.teacher(BertConfig(architectures=[kind], id2label=dict(enumerate(names))))

    assert list(found.labels) == ["O", "B-PER", "I-PER"]
    assert teacher("I-PER", "O", "B-PER", "B-LOC") == ("I-PER", "O", "B-PER", "B-LOC")
    assert teacher("O", "B-PER") is None and teacher("O", "B-PER", "I-PER", kind="BertModel") is None


def test_pairs_are_halved_and_kept_apart(tmp_path):
    (tmp_path / "a.txt").write_text(LINES)
    rows = "".join(f"one {i // 2},two {i // 2},{i % 5}\n" for i in range(40))
    (tmp_path / "pairs.csv").write_text("text1,text2,score\n" + rows)
    found = understood(tmp_path / "a.txt", eval=tmp_path / "pairs.csv")
    dev, test = ({row.texts for row in found.pairs[side]} for side in ("dev", "test"))
    assert len(dev) == len(test) == 10 and not dev & test
    for side in ("train", "dev", "test"):
        found.write(tmp_path, side, found.examples[:4])
    task = found.task(tmp_path, None)
    assert task.metric == "spearman" and len(task.head.read_files(task, ["validation"])["validation"]) == 20
    assert found.lines(tmp_path).metric == "cosine_to_teacher"


def hub(monkeypatch, **splits: Dataset) -> None:
    monkeypatch.setattr(forms, "load_dataset", lambda name: DatasetDict(splits))


def test_a_name_on_the_hub_is_data_like_any(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = {"text": [f"text {i} x" for i in range(12)], "label": [i % 2 for i in range(12)]}
    named = Dataset.from_dict(
        rows, features=Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    )
    hub(monkeypatch, test=named.select([0]), train=named)
    found = understood("owner/name")
    assert found.labels == {"no": 6, "yes": 6} and "'test' are not used" in found.notes[0]
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B-X"]))})
    tagged = Dataset.from_dict({"tokens": [["a", str(i)] for i in range(12)], "ner_tags": [[1, 0]] * 12}, features)
    hub(monkeypatch, train=tagged)
    assert understood("owner/name").labels == {"O": 12, "B-X": 12, "I-X": 0}
    hub(monkeypatch, train=Dataset.from_list([asked(i) for i in range(12)]))
    assert understood("owner/name").task_kind == "question-answering"

    def fails(name):
        raise ConnectionError("no way there")

    monkeypatch.setattr(forms, "load_dataset", fails)
    with pytest.raises(TrituneError, match=r"owner/name: no such file .* can be loaded \(no way there\)"):
        understood("owner/name")


def test_a_sheet_is_read_like_a_table(tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="needs the extra excel")
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append([])
    sheet.append(["", "note", "label"])
    for i in range(12):
        sheet.append([i, f"text {i} x", i % 2])
    sheet.append([])
    sheet.append([12, "NA", 1])
    book.create_sheet("other")
    book.save(tmp_path / "a.xlsx")
    found = understood(tmp_path / "a.xlsx")
    assert found.columns == {"texts": ["note"], "label": "label"} and found.labels == {"0": 6, "1": 7}
    assert [(one.line, one.reason) for one in found.remarks] == [(15, "blank")]
    assert any("first of 2" in note for note in found.notes) and found.examples[-1].texts == ("NA",)
    (tmp_path / "b.xlsx").write_bytes(b"PK no book")
    with pytest.raises(TrituneError, match=r"b.xlsx: not an Excel file that can be read"):
        read_data(tmp_path / "b.xlsx")


def test_a_sheet_without_openpyxl_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    monkeypatch.setattr(forms.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrituneError, match=r"a.xlsx: reading Excel's files needs openpyxl: pip install openpyxl"):
        read_data(tmp_path / "a.xlsx")


# file, content, --task, message
REFUSED = {
    "not_questions": ("a.csv", "text,label\nx y,1\n", "question-answering", "holds no data for question-answering"),
    "not_images": ("a.csv", "text,label\nx y,1\n", "image-classification", "looks like data for text-classification"),
    "no_tags": ("a.jsonl", json_lines(TEXTS), "token-classification", "name those of words and tags with"),
    "all_outside": ("a.jsonl", json_lines([row | {"tags": ["O", "O"]} for row in TOKENS]), None, "every tag is O"),
    "no_known_task": ("a.txt", LINES, "chat", "task: 'chat' is not one of text-classification"),
    "few_lines": ("a.txt", "a b\nc d\n", None, "2 texts can be used; at least 10 are needed"),
    "empty": ("a.txt", "\n \n", None, "holds no rows"),
    "odd_squad": ("a.json", '{"data": [1]}', None, "the list `paragraphs` is missing"),
    "no_pairs": ("a.txt", LINES, None, "pairs need two columns of text"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path, name):
    file, content, task, message = REFUSED[name]
    (tmp_path / file).write_text(content)
    (tmp_path / "pairs.csv").write_text("text,label\nx y,1\n")
    more = {"eval": tmp_path / "pairs.csv"} if name == "no_pairs" else {}
    with pytest.raises(TrituneError, match=message):
        understood(tmp_path / file, task, **more)


def test_folders_that_hold_no_classes(tmp_path):
    with pytest.raises(TrituneError, match="one folder a class, and this has no folder"):
        read_data(tmp_path)
    pictures.make_folder(tmp_path / "photos", 5, names=("train", "Val"))
    with pytest.raises(TrituneError, match="'Val', 'train' are parts, not classes"):
        read_data(tmp_path / "photos")
    pictures.make_folder(tmp_path / "one", 12, names=("cat",))
    with pytest.raises(TrituneError, match="images of 1 class; at least two"):
        understood(tmp_path / "one")


def test_the_output_is_no_part_of_the_data(tmp_path):
    base, data = pictures.make_vit(tmp_path / "base"), pictures.make_folder(tmp_path / "photos", 5)
    with pytest.raises(TrituneError, match="lies in the folder of the data"):
        tritune.compress(base, data, data / "small", say=str)
    assert sorted(path.name for path in data.iterdir()) == sorted(pictures.COLOURS)


def test_pairs_are_for_sentence_encoders(tmp_path):
    (tmp_path / "a.csv").write_text(TAKEN["table"][1])
    (tmp_path / "pairs.csv").write_text("x")
    with pytest.raises(TrituneError, match="eval: pairs are for sentence encoders; the data is for text-c"):
        tritune.compress("m", tmp_path / "a.csv", tmp_path / "out", eval=tmp_path / "pairs.csv", say=str)


def test_a_folder_is_written_by_one_command_at_a_time(tmp_path):
    base, data = small_answers.write_base(tmp_path / "base"), tmp_path / "a.csv"
    data.write_text(TAKEN["table"][1])
    (tmp_path / "out").mkdir()
    with (
        FileLock(tmp_path / "out" / ".lock"),
        pytest.raises(TrituneError, match="out: another run is writing into this folder; choose another, or wait"),
    ):
        tritune.compress(base, data, tmp_path / "out", say=str)
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {".lock"}


def test_tagged_words_in_a_table(tmp_path):
    lines = "".join(f"dog{i}\tB-X\nsleeps\tO\n\n" for i in range(12))
    (tmp_path / "tags.tsv").write_text(lines)
    found = understood(tmp_path / "tags.tsv")
    assert found.task_kind == "token-classification" and len(found.examples) == 12


def test_a_json_object_is_no_table(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"text": {"0": "a", "1": "b"}, "label": {"0": 1, "1": 0}}))
    with pytest.raises(TrituneError, match=r"a single object with 'text', 'label'; .* to_json\(orient='records'\)"):
        understood(tmp_path / "a.json")
    (tmp_path / "b.json").write_text('{"data": []}')
    with pytest.raises(TrituneError, match="holds no questions"):
        understood(tmp_path / "b.json")
