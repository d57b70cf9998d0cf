"""The task table: for every task its columns, its labels, the metric that selects, and the published run lengths.

Numbers are those of the published recipes (TernaryBERT, EMNLP 2020; Teacher Intervention, EACL 2023). Class names stand
in the id order of the hub data set `nyu-mll/glue`, so a model fine-tuned elsewhere on that data keeps its label ids.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import TrituneError
from .heads import HEADS, IMAGE_CLASSIFICATION, TEXT_CLASSIFICATION, Head
from .metrics import Measure, accuracy, matthews_correlation, mean_accuracy_f1, mean_pearson_spearman


@dataclass(frozen=True)
class Task:
    """One row of the task table.

    `measure(predictions, labels)` takes logits `(batch, num_labels)` and labels `(batch,)` and returns every metric of
    the task, among them `metric`, the one that selects checkpoints (higher is better). `labels` holds the class names
    in id order, or None for regression. The first of `dev_splits` is the one that selects. `head` says what is done
    with rows and outputs. `files` gives the file of every split of a user's own data; `label_column` holds its label.
    `max_length` is None where inputs have no length to cut.
    """

    name: str
    title: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    metric: str
    measure: Measure
    max_length: int | None
    batch_size: int
    eval_steps: int
    dev_splits: tuple[str, ...] = ("validation",)
    head: Head = TEXT_CLASSIFICATION
    files: Mapping[str, Path] | None = None
    label_column: str = "label"

    @property
    def is_regression(self) -> bool:
        """Whether the label is a score instead of a class."""
        return self.labels is None

    @property
    def num_labels(self) -> int:
        """Width of the logits: the number of classes, or 1 for regression."""
        return 1 if self.labels is None else len(self.labels)


_ONE, _TWO, _QUESTIONS = ("sentence",), ("sentence1", "sentence2"), ("question1", "question2")
_ENTAILED = ("entailment", "not_entailment")
_MNLI_LABELS, _MNLI_DEV = ("entailment", "neutral", "contradiction"), ("validation_matched", "validation_mismatched")
_ACCEPTABLE = ("unacceptable", "acceptable")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_IMAGES = {"head": IMAGE_CLASSIFICATION, "dev_splits": ("test",)}


def _task(name: str, title: str, columns: tuple, labels: tuple | None, measure: Measure, *lengths, **more) -> Task:
    """A table row whose selecting metric carries the name of the function that measures it."""
    return Task(name, title, columns, labels, measure.__name__, measure, *lengths, **more)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        # name, title, text columns, labels, measure, max length, batch, evaluate every
        _task("cola", "CoLA", _ONE, _ACCEPTABLE, matthews_correlation, 64, 16, 50),
        _task("sst2", "SST-2", _ONE, ("negative", "positive"), accuracy, 64, 32, 100),
        _task("mrpc", "MRPC", _TWO, ("not_equivalent", "equivalent"), mean_accuracy_f1, 128, 32, 50),
        _task("stsb", "STS-B", _TWO, None, mean_pearson_spearman, 128, 32, 100),
        _task("qqp", "QQP", _QUESTIONS, ("not_duplicate", "duplicate"), mean_accuracy_f1, 128, 32, 1000),
        _task("mnli", "MNLI", ("premise", "hypothesis"), _MNLI_LABELS, accuracy, 128, 32, 8000, dev_splits=_MNLI_DEV),
        _task("qnli", "QNLI", ("question", "sentence"), _ENTAILED, accuracy, 128, 32, 1000),
        _task("rte", "RTE", _TWO, _ENTAILED, accuracy, 128, 32, 20),
        _task("wnli", "WNLI", _TWO, ("not_entailment", "entailment"), accuracy, 128, 32, 20),
        _task("demo", "Demo", _ONE, _ACCEPTABLE, accuracy, 32, 32, 50),
        _task("cifar10", "CIFAR-10", ("image",), _CIFAR10, accuracy, None, 64, 100, **_IMAGES),
    )
}


def get_task(name: str) -> Task:
    """The task of that name, in the hub's spelling or the paper's, in any case.

    Raises TrituneError for an unknown name, listing the known ones.

    >>> get_task("STS-B") is get_task("stsb")
    True
    """
    key = name.strip().lower().replace("-", "").replace("_", "")
    if key in TASKS:
        return TASKS[key]
    close = difflib.get_close_matches(key, TASKS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise TrituneError(f"there is no task {name!r}: {hint}known tasks are {', '.join(TASKS)}")


def own_task(
    kind: str, files: Mapping[str, Path], columns: Sequence[str] | None = None, label_column: str | None = None
) -> Task:
    """A task of the user's own files.

    Args:
        kind: a name of `HEADS`.
        files: "train" and "validation" to their files.
        columns: that hold the inputs; None looks for the usual ones.
        label_column: that holds the label; None looks for "label".

    Raises:
        TrituneError: there is no such kind, or a file cannot be used.
    """
    if kind not in HEADS:
        raise TrituneError(f"there is no kind of task {kind!r}; known are {', '.join(HEADS)}")
    fields = HEADS[kind].describe(files, columns, label_column)
    return Task(**{"name": kind, "title": kind, "head": HEADS[kind], "files": files} | fields)
