"""What both models answer on the test part, row by row, and how well each does on every class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_fscore_support
from sklearn.preprocessing import MultiLabelBinarizer

from ..engine.answers import predictions, probabilities
from ..tasks.data.splitting import Place
from ..tasks.heads.classifier import PROBLEM_TYPES, Classifier
from ..tasks.heads.labels import SEPARATOR
from ..tasks.registry import Task

ANSWERS = "answers.csv"
MODELS = ("student", "teacher")
_TEXTS = ("text", "text_pair")


def answers(
    teacher: np.ndarray,
    student: np.ndarray,
    labels: np.ndarray,
    task: Task,
    inputs: Sequence[tuple[Place, Sequence[str]]],
) -> list[dict[str, Any]]:
    """A row for every test row: line, texts, label, and what each model says; none for kinds without one label a row.

    Args:
        teacher, student: their logits, (rows, labels).
        labels: class ids (rows,), zeros and ones (rows, labels), or scores (rows,).
        task: with the names of the labels.
        inputs: the line in the file and the texts of every row.

    Returns:
        Columns `line`, `text`, `text_pair` of a pair, `label`, and for each of `MODELS` its answer and, unless it is a
        score, `<model>_probability`: of the answer; with many labels, of the decision that is furthest off.
    """
    if not isinstance(task.head, Classifier) or student.ndim != 2:
        return []
    rows: list[dict[str, Any]] = [{"line": line} | dict(zip(_TEXTS, texts, strict=False)) for line, texts in inputs]
    for row, label in zip(rows, _named(_as_logits(labels, task), task), strict=True):
        row["label"] = label
    for name, logits in zip(MODELS, (student, teacher), strict=True):
        for row, answer in zip(rows, _named(logits, task), strict=True):
            row[name] = answer
        if task.problem != "regression":
            for row, share in zip(rows, _certainty(logits, labels, task), strict=True):
                row[f"{name}_probability"] = round(float(share), 4)
    return rows


def _as_logits(labels: np.ndarray, task: Task) -> np.ndarray:
    """Logits of a model that gives these labels."""
    if task.problem == "regression":
        return np.asarray(labels, np.float64)[:, None]
    return np.eye(task.num_labels)[labels] if task.problem == "single_label" else np.asarray(labels) - 0.5


def _named(logits: np.ndarray, task: Task) -> list[Any]:
    answered = predictions(logits, task.labels or (), PROBLEM_TYPES[task.problem])
    return [SEPARATOR.join(one) if isinstance(one, list) else one for one in answered]


def _certainty(logits: np.ndarray, labels: np.ndarray, task: Task) -> np.ndarray:
    shares = probabilities(logits, PROBLEM_TYPES[task.problem])
    if task.problem == "single_label":
        return shares.max(-1)
    worst = np.abs(shares - labels).argmax(-1)[:, None]
    furthest = np.take_along_axis(shares, worst, -1)[:, 0]
    return np.maximum(furthest, 1 - furthest)


def per_class(rows: Sequence[dict[str, Any]], names: Sequence[str], multi_label: bool) -> list[dict[str, Any]]:
    """Precision, recall and F1 of both models for every class, 0 where undefined, and how many rows have it.

    Args:
        rows: from `answers`.
        names: of the classes.
        multi_label: whether a row may have any number of them.
    """
    known = {}
    for model in MODELS:
        true, given = ([row[column] for row in rows] for column in ("label", model))
        if multi_label:
            marks = MultiLabelBinarizer(classes=list(names))
            true, given = (marks.fit_transform([_parted(cell) for cell in cells]) for cells in (true, given))
        scores = precision_recall_fscore_support(
            true, given, labels=range(len(names)) if multi_label else list(names), zero_division=0.0
        )
        known[model] = [np.asarray(each).tolist() for each in scores]
    return [
        {"label": name, "rows": known[MODELS[0]][3][place]}
        | {
            model: dict(zip(("precision", "recall", "f1"), (of[place] for of in scores[:3]), strict=True))
            for model, scores in known.items()
        }
        for place, name in enumerate(names)
    ]


def _parted(cell: str) -> list[str]:
    return cell.split(SEPARATOR) if cell else []
