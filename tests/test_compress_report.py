"""The report of a compression: what both models answer, row by row and class by class, on a page made of its folder."""

import csv
import json
import random
import re
from dataclasses import replace

import numpy as np
import pytest

from run_folders import make_compression, make_run
from test_report import Page, pictures
from tritune.compression.answers import answers, per_class
from tritune.compression.report import write_compression_report
from tritune.errors import TrituneError
from tritune.tasks.heads import FEATURE_EXTRACTION, TEXT_CLASSIFICATION
from tritune.tasks.registry import Task

SCRIPT = "<script>console.error('ticket')</script>"


def task(problem: str, labels: tuple[str, ...] | None = ("a", "b", "c")) -> Task:
    return Task("", "", ("text",), labels, "", dict, TEXT_CLASSIFICATION, multi_label=problem == "multi_label")


def rows_of(count: int, classes: int) -> list[dict]:
    """Answers as `answers` gives them, some of them wrong."""
    names = [f"class {place} {SCRIPT}" for place in range(classes)]
    draw = random.Random(0)
    return [
        {
            "line": i + 2,
            "text": f"{'a long text ' * 60 if i == 3 else 'text'} {i} {SCRIPT}",
            "label": names[i % classes],
            "student": draw.choice([names[i % classes], names[(i + 1) % classes]]),
            "student_probability": round(0.5 + i / 1000, 4),
            "teacher": names[i % classes],
            "teacher_probability": 0.75,
        }
        for i in range(count)
    ]


def page_of(folder) -> tuple[Page, str]:
    write_compression_report(folder, folder / "report.html")
    text = (folder / "report.html").read_text()
    return Page(text), text


def test_answers_are_those_of_both_models():
    teacher = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 9.0]])
    student = np.array([[0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    inputs = [(7, ("first", "and more")), (9, ("second", ""))]
    first, second = answers(teacher, student, np.array([1, 2]), task("single_label"), inputs)
    assert list(first) == [
        *("line", "text", "text_pair", "label", "student", "student_probability"),
        *("teacher", "teacher_probability"),
    ]
    assert (first["line"], first["text"], first["text_pair"]) == (7, "first", "and more")
    assert (first["label"], first["student"], first["teacher"]) == ("b", "b", "a")
    assert first["student_probability"] == round(np.exp(1) / (1 + np.exp(1) + np.exp(0.5)), 4)
    assert (second["label"], second["teacher_probability"]) == ("c", 0.9998)


def test_answers_of_many_labels_and_of_scores():
    logits = np.array([[2.0, -1.0, 0.5], [-1.0, -2.0, -3.0]])
    labels = np.array([[1, 0, 0], [0, 0, 0]], np.float32)
    first, second = answers(logits, logits, labels, task("multi_label"), [(2, ("x",)), (3, ("y",))])
    assert (first["label"], first["student"], second["label"], second["student"]) == ("a", "a|c", "", "")
    # Of the decision that is furthest off: c is given at 0.62, and no row has it.
    assert first["student_probability"] == 0.6225 and second["student_probability"] == 0.7311
    scores = answers(np.array([[0.5]]), np.array([[0.25]]), np.array([1.5]), task("", None), [(2, ("x",))])
    assert scores == [{"line": 2, "text": "x", "label": 1.5, "student": 0.25, "teacher": 0.5}]
    assert answers(logits, logits, labels, replace(task("", None), head=FEATURE_EXTRACTION), []) == []


def slow_class(rows: list[dict], model: str, name: str) -> tuple[float, float, float]:
    parts = [(row["label"].split("|"), row[model].split("|")) for row in rows]
    right = sum(name in true and name in given for true, given in parts)
    given, true = sum(name in given for _, given in parts), sum(name in true for true, _ in parts)
    precision, recall = right / given if given else 0.0, right / true if true else 0.0
    return precision, recall, 2 * right / (given + true) if given + true else 0.0


@pytest.mark.parametrize("multi_label", [False, True])
def test_scores_of_classes_are_those_of_slow_loops(multi_label):
    draw, names = random.Random(1), ["a", "b", "never"]
    cell = lambda: draw.choice(["a", "b", "a|b", ""] if multi_label else ["a", "b"])  # noqa: E731
    rows = [{"label": cell(), "student": cell(), "teacher": "a"} for _ in range(50)]
    for one in per_class(rows, names, multi_label):
        assert one["rows"] == sum(one["label"] in row["label"].split("|") for row in rows)
        for model in ("student", "teacher"):
            assert tuple(one[model].values()) == pytest.approx(slow_class(rows, model, one["label"]))


def test_the_page_begins_with_what_was_asked_for(tmp_path):
    rows = rows_of(40, 2)
    shown, text = page_of(make_compression(tmp_path / "small", rows))
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "The student's accuracy is 87.5, its teacher's 87.5: 1.2 points lost (-0.5 to 2.8)." in shown.text
    result = shown.rows("Teacher and student on the test part")
    assert result["accuracy"] == {"teacher": "87.5 80.0 to 95.0", "student": "87.5 80.0 to 95.0"}
    assert result["size"] == {"teacher": "1.0 MB", "student": "100.0 kB"}
    taken = {name: cells["what it was taken for"] for name, cells in shown.rows("What the file was taken for").items()}
    assert taken["encoding, delimiter"] == "utf-8, semicolon" and taken["parts"] == "56 train, 8 dev, 40 test (seed 42)"
    assert taken["length"] == "64 tokens; 4.1 % of the texts are longer and cut at their end"
    assert taken["rows"] == "80 used, 21 set aside; 2 have a text that has another label elsewhere"
    remarks = shown.tables["Rows with a remark"]
    assert len(remarks) == 21 and remarks[1] == ["1", "set aside", "blank"] and "20 of 23 are shown" in shown.text
    assert shown.images[0]["alt"].startswith("Size against dev score: 2 bits 80.0 (89.0 kB), 2 bits, 12 steps 81.0")
    assert all(picture.rstrip().endswith(b"</svg>") for picture in pictures(shown))
    # The students' report follows as it is.
    assert (
        list(shown.rows("Scores and costs of the runs")) == ["0", "1"] and "Every score of every model" in shown.tables
    )


def test_classes_confusion_and_the_worst_mistakes(tmp_path):
    rows = rows_of(40, 2)
    shown, _ = page_of(make_compression(tmp_path / "small", rows))
    names = [f"class {place} {SCRIPT}" for place in range(2)]
    wrong = sorted((row for row in rows if row["student"] != row["label"]), key=lambda row: -row["student_probability"])
    for name in names:
        precision, recall, f1 = slow_class(rows, "student", name)
        cells = shown.rows("Scores of every class")[name]
        assert cells["precision, student"] == f"{100 * precision:.1f}" and cells["recall, teacher"] == "100.0"
        assert (cells["recall, student"], cells["F1, student"]) == (f"{100 * recall:.1f}", f"{100 * f1:.1f}")
        assert cells["rows"] == "20"
        counts = [sum((row["label"], row["student"]) == (name, other) for row in rows) for other in names]
        matrix = shown.rows("Confusion matrix of the student")[name]
        assert list(matrix.values()) == [str(count or "") for count in counts]
    header, *lines = shown.tables["Rows that the student gets wrong"]
    assert header == ["line", "text", "label", "student", "teacher"]
    assert [line[0] for line in lines] == [str(row["line"]) for row in wrong[:25]]
    sure = f"{100 * wrong[0]['student_probability']:.1f} %"
    assert lines[0][2:] == [wrong[0]["label"], f"{wrong[0]['student']} {sure}", f"{wrong[0]['teacher']} 75.0 %"]
    assert f"{len(wrong)} of 40 test rows are wrong" in shown.text and max(len(line[1]) for line in lines) <= 280


def test_of_many_classes_the_weakest_and_the_most_confused(tmp_path):
    rows = rows_of(600, 200)
    shown, _ = page_of(make_compression(tmp_path / "small", rows))
    assert len(shown.tables["The weakest classes"]) == 21 and len(shown.tables["Scores of every class"]) == 201
    assert "Confusion matrix of the student" not in shown.tables
    _, first, *others = shown.tables["Pairs of classes that are confused"]
    assert first[2:] == ["3 of 3", "100.0"] and len(others) == 19
    confused = [row for row in rows if (row["label"], row["student"]) == (first[0], first[1])]
    assert len(confused) == 3


def test_scores_have_a_picture_and_their_largest_errors(tmp_path):
    rows = [{"line": i + 2, "text": f"t {i}", "label": i / 2, "student": i / 4, "teacher": i / 2} for i in range(40)]
    shown, _ = page_of(make_compression(tmp_path / "small", rows, "regression"))
    assert shown.images[1]["alt"].startswith("Scores of teacher and student")
    lines = shown.tables["Rows that the student gets wrong"][1:]
    assert lines[0] == ["41", "t 39", "19.5", "9.75", "19.5", "-9.75"] and len(lines) == 25
    assert "Scores of every class" not in shown.tables


def test_many_labels_have_a_table_of_labels(tmp_path):
    sure = {"student_probability": 0.75, "teacher_probability": 0.5}
    rows = [{"line": i, "text": "x", "label": "a|b", "student": "a" * (i % 2), "teacher": "b"} | sure for i in range(6)]
    shown, _ = page_of(make_compression(tmp_path / "small", rows, "multi_label"))
    assert shown.rows("Scores of every class")["b"]["recall, teacher"] == "100.0"
    assert shown.tables["Rows that the student gets wrong"][1][2:] == ["a|b", "none 75.0 %", "b 50.0 %"]


def test_nothing_is_wrong_and_nothing_is_known_of_rows(tmp_path):
    right = [row | {"student": row["label"]} for row in rows_of(6, 2)]
    shown, _ = page_of(make_compression(tmp_path / "right", right))
    assert "Rows that the student gets wrong" not in shown.tables
    other = make_compression(tmp_path / "other", right)
    (other / "answers.csv").unlink()  # a kind of task that has none
    assert "Scores of every class" not in page_of(other)[0].tables


def test_the_command_makes_the_page_again(tmp_path, cli):
    folder = make_compression(tmp_path / "small", rows_of(10, 2))
    code, out, err = cli("report", folder, "--output", tmp_path / "page.html")
    assert code == 0 and "2 runs" in out, err
    assert "Worst mistakes" in (tmp_path / "page.html").read_text()
    code, _, err = cli("report", folder, make_run(tmp_path / "run"), "--output", tmp_path / "page.html")
    assert code == 2 and "has a report of its own; give its runs in" in err


DAMAGES = {
    "unfinished": (lambda folder: (folder / "metrics.json").unlink(), "the compression is not finished"),
    "a_key_is_missing": (lambda folder: edit(folder, "columns"), "make it again"),
    "no_student_ships": (lambda folder: edit(folder, "tried", [{"folder": "students/0"}]), "make it again"),
    "a_run_is_gone": (lambda folder: edit(folder, "tried", [{"folder": "students/9"}]), "students/9: no such folder"),
    "no_list": (lambda folder: edit(folder, "tried", 7), "make it again"),
    "no_remarks": (lambda folder: (folder / "rows.csv").unlink(), "rows.csv: cannot be read"),
    "answers_are_no_table": (lambda folder: (folder / "answers.csv").write_text('a\n"'), "answers.csv, line"),
    "answers_without_columns": (lambda folder: (folder / "answers.csv").write_text("a\nb\n"), "make it again"),
}


def edit(folder, key: str, value=None):
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics.pop(key)
    (folder / "metrics.json").write_text(json.dumps(metrics | ({} if value is None else {key: value})))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path, damage):
    folder = make_compression(tmp_path / "small", rows_of(10, 2))
    DAMAGES[damage][0](folder)
    with pytest.raises(TrituneError, match=re.escape(DAMAGES[damage][1])) as raised:
        write_compression_report(folder, folder / "report.html")
    assert len(str(raised.value).splitlines()) == 1 and not (folder / "report.html").exists()


def test_answers_are_a_file_that_anything_reads(tmp_path):
    folder = make_compression(tmp_path / "small", rows_of(10, 2))
    with (folder / "answers.csv").open(newline="") as file:
        assert [row["line"] for row in csv.DictReader(file)] == [str(i + 2) for i in range(10)]
