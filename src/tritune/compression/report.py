"""The page of a finished compression, made of what lies in its folder."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..errors import TrituneError, first_line, readable
from ..report.figures import drawn
from ..report.files import read_object
from ..report.page import check_output, render, write_page
from ..report.runs import Run, read_runs
from ..report.tables import Cell, Row, Table, percent
from ..tasks.table import read_table
from ..training.run_folder import METRICS
from .answers import ANSWERS, MODELS
from .result import figure_of, input_of, table_of
from .table import classes_line

PLAN, REMARKS = "plan.json", "rows.csv"
_TEMPLATE = "compression.html.jinja"
_REMARKS_SHOWN, _MISTAKES_SHOWN, _CONFUSED_SHOWN = 20, 25, 20
# More classes make no readable matrix.
_MATRIX = 20
_LONGEST_TEXT = 280
_LONG_TEXTS = {"truncate": "cut at their end", "head-tail": "cut in their middle", "window": "read in windows"}


def is_compression(folder: Path) -> bool:
    """Whether a folder holds a compression, finished or not."""
    return (folder / PLAN).is_file()


def write_compression_report(
    folder: Path, output: Path, overwrite: bool = False, metrics: dict[str, Any] | None = None
) -> list[Run]:
    """Write the page of a compression.

    Args:
        folder: of the compression.
        output: the file to write; an existing report is replaced.
        overwrite: whether any other existing file may be replaced too.
        metrics: what `metrics.json` will hold; None reads it.

    Returns:
        The students' runs.

    Raises:
        TrituneError: the compression is not finished, a file of it cannot be used, or the page cannot be written.
    """
    check_output(output, overwrite)
    if metrics is None:
        if not (folder / METRICS).is_file():
            raise TrituneError(f"{folder}: the compression is not finished; the same command goes on")
        metrics = read_object(folder / METRICS)
    try:
        runs = read_runs([folder / one["folder"] for one in metrics["tried"]])
        contents = _contents(folder, metrics)
    except TrituneError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        found = f"{type(error).__name__}: {first_line(error)}"
        raise TrituneError(f"{folder}: not as `tritune compress` leaves it ({found}); make it again") from None
    write_page(render(runs, _TEMPLATE, **contents), output)
    return runs


def _contents(folder: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    header, *rows = table_of(metrics)
    remarks = [row for row in read_table(folder / REMARKS) if row["reason"]]
    tried = [f"{one['name']} {percent(one['score'])} ({readable(one['size_bytes'])})" for one in metrics["tried"]]
    contents = {
        "title": f"{metrics['data']} in {readable(metrics['student']['size_bytes'])}",
        "outcome": _outcome(metrics),
        "test_rows": _tested(metrics),
        "answered": metrics["rows"]["test"],
        "input": input_of(metrics),
        "result": _table(header, [[first, *map(_noted, others)] for first, *others in rows]),
        "file": _table(["", "what it was taken for"], _file(metrics)),
        "counts": _counts(metrics["labels"]),
        "remarks": len(remarks),
        "set_aside": _remarks(remarks[:_REMARKS_SHOWN]) if remarks else None,
        "sizes": drawn(figure_of(metrics, folder)),
        "tried": ", ".join(tried),
        "many_labels": _problem(metrics) == "multi_label",
        **dict.fromkeys(("classes", "weakest", "confusion", "confused", "scatter", "mistakes")),
        "wrong": 0,
    }
    if not (folder / ANSWERS).is_file():
        return contents
    answers = read_table(folder / ANSWERS)
    return contents | (_of_scores(answers) if _problem(metrics) == "regression" else _of_classes(answers, metrics))


def _tested(metrics: dict[str, Any]) -> str:
    """What the test part holds."""
    pairs = metrics.get("pairs", {}).get("test")
    return f"{pairs} pairs" if pairs else f"{metrics['rows']['test']} rows"


def _problem(metrics: dict[str, Any]) -> str:
    """Kinds of tasks that have one problem only do not name it."""
    return metrics.get("problem", "single_label")


def _noted(value: str) -> Cell:
    """A score with its interval below it."""
    score, _, interval = value.partition(" (")
    return Cell(score, interval.removesuffix(")"))


def _outcome(metrics: dict[str, Any]) -> list[str]:
    """What a reader wants to know first."""
    teacher, student, metric = metrics["teacher"], metrics["student"], metrics["metric"]
    name, (low, high) = metric.replace("_", " "), metrics["loss"]["interval"]
    times = teacher["size_bytes"] / student["size_bytes"]
    return [
        f"The student's {name} is {percent(student['scores'][metric])}, its teacher's "
        f"{percent(teacher['scores'][metric])}: {metrics['loss']['points']:.1f} points lost ({low:.1f} to {high:.1f}).",
        f"Its size is {readable(student['size_bytes'])}, its teacher's {readable(teacher['size_bytes'])} "
        f"({times:.1f} times as much).",
        f"One {input_of(metrics)} takes {student['latency_ms']:.1f} ms, its teacher {teacher['latency_ms']:.1f} ms.",
    ]


def _file(metrics: dict[str, Any]) -> list[list[str]]:
    file, columns, plan = metrics["file"], metrics["columns"], metrics["plan"]
    labels = metrics["labels"]
    what = "a score" if _problem(metrics) == "regression" else ""
    if labels is not None:
        what = f"{len(labels)} classes" if len(labels) > _MATRIX else classes_line(labels)
    done = _LONG_TEXTS[metrics["long_texts"]]
    cut = f"{100 * plan['cut']:.1f} % of the texts are longer and {done}" if plan["cut"] else "none is longer"
    length = "" if plan["max_length"] is None else f"{plan['max_length']} tokens; {cut}"
    parts = ", ".join(f"{count} {side}" for side, count in metrics["rows"].items())
    rows = f"{file['rows']} used, {metrics['set_aside']} set aside"
    if metrics["conflicts"]:
        same = "copy" if input_of(metrics) == "image" else "text"
        rows += f"; {metrics['conflicts']} have a {same} that has another label elsewhere"
    taken = {
        "file": metrics["data"],
        "encoding, delimiter": ", ".join(filter(None, (file["encoding"], file["delimiter"]))),
        "rows": rows,
        "text": ", ".join(columns.get("texts", ())),
        "label": ", ".join(filter(None, (columns.get("label"), what))),
        "parts": f"{parts} (seed {metrics['seed']})",
        "length": length,
        "model": metrics["model"],
        "noted": "; ".join(metrics["notes"]),
    }
    return [[name, value] for name, value in taken.items() if value]


def _counts(labels: dict[str, int] | None) -> Table | None:
    if labels is None or len(labels) <= _MATRIX:
        return None
    return _table(["label", "rows"], [[name, str(count)] for name, count in labels.items()])


def _remarks(remarks: Sequence[dict[str, Any]]) -> Table:
    used = {"true": "used", "false": "set aside"}
    return _table(["line", "", "reason"], [[row["line"], used[row["kept"]], row["reason"]] for row in remarks])


def _of_classes(answers: Sequence[dict[str, Any]], metrics: dict[str, Any]) -> dict[str, Any]:
    """The tables about classes, and the mistakes, most certain first."""
    classes = metrics["classes"]
    wrong = [row for row in answers if row["student"] != row["label"]]
    worst = sorted(wrong, key=lambda row: -float(row["student_probability"]))[:_MISTAKES_SHOWN]
    made: dict[str, Any] = {"classes": _class_table(classes), "wrong": len(wrong)}
    if len(classes) > _MATRIX:
        weakest = sorted(classes, key=lambda one: (one["student"]["f1"], -one["rows"]))[:_MATRIX]
        made["weakest"] = _class_table(weakest)
    if _problem(metrics) == "single_label":
        names = [one["label"] for one in classes]
        counts = Counter((row["label"], row["student"]) for row in answers)
        having = {one["label"]: one["rows"] for one in classes}
        if len(names) <= _MATRIX:
            made["confusion"] = {"labels": names, "rows": [_shares(names, label, counts) for label in names]}
        else:
            made["confused"] = _confused(counts, having)
    has_text = any("text" in row for row in worst)
    header = [*(["line", "text"] if has_text else ["file"]), "label", "student", "teacher"]
    rows = [
        [row["line"], *([_text_cell(row)] if has_text else []), row["label"], *(_sure(row, model) for model in MODELS)]
        for row in worst
    ]
    return made | {"mistakes": _table(header, rows) if rows else None}


def _class_table(classes: Sequence[dict[str, Any]]) -> Table:
    keys = [(model, score) for score in ("precision", "recall", "f1") for model in ("teacher", "student")]
    rows = [[one["label"], *(percent(one[model][score]) for model, score in keys), str(one["rows"])] for one in classes]
    names = {"precision": "precision", "recall": "recall", "f1": "F1"}
    return _table(["class", *(f"{names[score]}, {model}" for model, score in keys), "rows"], rows)


def _shares(names: Sequence[str], label: str, counts: Counter[tuple[str, str]]) -> list[tuple[int, int]]:
    """A row of the matrix: for every answer the number of rows, and its percentage of the label's rows."""
    total = max(1, sum(counts[label, answer] for answer in names))
    return [(counts[label, answer], round(100 * counts[label, answer] / total)) for answer in names]


def _confused(counts: Counter[tuple[str, str]], having: dict[str, int]) -> Table | None:
    pairs = [(pair, count) for pair, count in counts.most_common() if pair[0] != pair[1]][:_CONFUSED_SHOWN]
    rows = [
        [label, answer, f"{count} of {having[label]}", percent(count / having[label])]
        for (label, answer), count in pairs
    ]
    return _table(["label", "student's answer", "rows", "% of the label's"], rows) if rows else None


def _sure(row: dict[str, Any], model: str) -> Cell:
    return Cell(row[model] or "none", f"{100 * float(row[f'{model}_probability']):.1f} %")


def _of_scores(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A picture of all answers, and the largest errors."""
    columns = {name: np.array([float(row[name]) for row in answers]) for name in ("label", "teacher", "student")}
    errors = columns["student"] - columns["label"]
    rows = [
        [answers[place]["line"], _text_cell(answers[place])]
        + [f"{columns[name][place]:.4g}" for name in ("label", "student", "teacher")]
        + [f"{errors[place]:+.4g}"]
        for place in np.argsort(-np.abs(errors), kind="stable")[:_MISTAKES_SHOWN]
    ]
    table = _table(["line", "text", "label", "student", "teacher", "error"], rows)
    return {"scatter": drawn(_scatter(columns)), "mistakes": table}


def _scatter(columns: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    ends = [columns["label"].min(), columns["label"].max()]
    axes.plot(ends, ends, "--", color="0.6", linewidth=1)
    for name, mark in (("teacher", "x"), ("student", "o")):
        axes.plot(columns["label"], columns[name], mark, label=name, markersize=4, alpha=0.6)
    axes.set_xlabel("score in the file")
    axes.set_ylabel("score of the model")
    axes.legend(fontsize="small")
    return figure


def _text_cell(row: dict[str, Any]) -> Cell:
    return Cell(_shortened(row["text"]), _shortened(row.get("text_pair", "")))


def _shortened(text: str) -> str:
    """The beginning of a long text.

    >>> len(_shortened("a" * 1000)), _shortened(" a  b ")
    (280, 'a b')
    """
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"


def _table(header: Sequence[str], rows: Sequence[Sequence[str | Cell]]) -> Table:
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    return Table(list(header), {"": [Row(first, others) for first, *others in cells]})
