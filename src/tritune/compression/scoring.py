"""The final table: scores of teacher and student on the test part with intervals, their agreement, size and speed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from ..checkpoints.load import load
from ..checkpoints.size import size_bytes
from ..compute.devices import this_process
from ..errors import TrituneError
from ..inference.evaluate import dev_logits, predict, recipe_in_force
from ..tasks.data import load_task_data
from ..tasks.heads import EncodedData
from ..tasks.heads.head import Read
from ..tasks.models import load_model
from ..tasks.registry import Task

RESAMPLES = 1000
_TIMED = 30
_VERIFIED = 64


@dataclass(frozen=True)
class Scored:
    """A model, what its head reads (rows, ...) of the test part, and the part as its tokenizer encodes it."""

    model: PreTrainedModel
    logits: np.ndarray
    data: EncodedData
    read: Read


def scored(source: str | Path, task: Task, lengths: Sequence[str], packed: bool = False) -> Scored:
    """A model's logits of a task's dev split, which here is the test part.

    Args:
        source: its folder or hub name.
        task: whose validation file is the test part.
        lengths: `key=value` for the recipe beside the model.
        packed: whether it is packed, and so loaded with the best engine there is.
    """
    task = task.for_model(source)
    model = load(source) if packed else load_model(source, task)
    recipe = recipe_in_force(source, model, lengths, task)
    task = replace(task, long_texts=recipe.long_texts)
    processor = task.head.load_processor(source, model, recipe.max_length)
    model.to(this_process().device)
    splits = load_task_data(task, splits=task.dev_splits)
    data = task.head.encode(splits, task, processor, recipe.max_length, "longest")
    return Scored(model, dev_logits(model, data, task, 32)[data.select], data, task.head.read)


def compared(teacher: Scored, student: Scored, task: Task, seed: int) -> dict[str, Any]:
    """The table's numbers: scores and 95 % intervals of both, the loss in points, closeness, size and latency.

    Intervals are percentiles of a bootstrap over rows, drawn for both models alike, so that the loss has one too.
    """
    each = [task.head.scored(one.logits, teacher.logits, task, one.data) for one in (teacher, student)]
    pair = dict(zip(("teacher", "student"), (answers for answers, _, _ in each), strict=True))
    _, labels, measure = each[0]
    drawn = resampled(pair, labels, measure, seed)
    times = latencies({"teacher": teacher, "student": student})
    rows: dict[str, Any] = {
        name: {
            "scores": {key: float(value) for key, value in measure(answers, labels).items()},
            "intervals": {key: interval(values) for key, values in drawn[name].items()},
            "size_bytes": size_bytes(one.model),
            "latency_ms": times[name],
        }
        for (name, answers), one in zip(pair.items(), (teacher, student), strict=True)
    }
    lost = 100 * (drawn["teacher"][task.metric] - drawn["student"][task.metric])
    points = 100 * (rows["teacher"]["scores"][task.metric] - rows["student"]["scores"][task.metric])
    close = task.head.closeness(student.logits, teacher.logits, task, student.data)
    return rows | {"loss": {"points": points, "interval": interval(lost)}, "closeness": close}


def resampled(
    logits: Mapping[str, np.ndarray], labels: np.ndarray, measure: Callable[..., dict[str, float]], seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """For every model and metric its values on resampled rows, (RESAMPLES,); the rows are the same for all models."""
    random = np.random.default_rng(seed)
    values: dict[str, dict[str, list[float]]] = {name: {} for name in logits}
    for _ in range(RESAMPLES):
        rows = random.integers(len(labels), size=len(labels))
        for name, of in logits.items():
            for key, value in measure(of[rows], labels[rows]).items():
                values[name].setdefault(key, []).append(value)
    return {name: {key: np.array(of) for key, of in each.items()} for name, each in values.items()}


def interval(values: np.ndarray) -> list[float]:
    """The middle 95 % of some values.

    >>> interval(np.arange(1001.0))
    [25.0, 975.0]
    """
    return [float(edge) for edge in np.quantile(values, (0.025, 0.975))]


def latencies(models: Mapping[str, Scored]) -> dict[str, float]:
    """Median milliseconds of one text at a time, with all its windows; models take turns, so that all are disturbed."""
    spent: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(_TIMED + 1):
        for name, one in models.items():
            of_input = one.data.dev_inputs
            rows = one.data.dev.select(np.flatnonzero(of_input == turn % (of_input[-1] + 1)))
            began = time.perf_counter()
            predict(one.model, rows, one.data.collate, 32, one.read)
            if turn:
                spent[name].append(1000 * (time.perf_counter() - began))
    return {name: median(values) for name, values in spent.items()}


def verify(packed: Path, student: Path, task: Task, data: EncodedData) -> int:
    """Check that a packed model gives the very logits of its student, in torch; returns the number of rows compared.

    Raises:
        TrituneError: a row differs.
    """
    rows, task = data.dev.select(range(min(_VERIFIED, len(data.dev)))), task.for_model(student)
    models = load(packed, engine="reference"), load_model(student, task)
    device = this_process().device
    own, theirs = (predict(model.to(device), rows, data.collate, 32, task.head.read) for model in models)
    if not np.array_equal(own, theirs):
        differing = int((own != theirs).any(axis=-1).sum())
        raise TrituneError(f"{packed}: {differing} of {len(rows)} predictions differ from {student}; report this")
    return len(rows)
