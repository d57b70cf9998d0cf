"""The task table: for every task its columns, its labels, the metric that selects, and the published run lengths.

Numbers are those of the published recipes (TernaryBERT, EMNLP 2020; Teacher Intervention, EACL 2023). Class names stand
in the id order of the hub data set `nyu-mll/glue`, so a model fine-tuned elsewhere on that data keeps its label ids.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import TrituneError, shown
from .heads import (
    FEATURE_EXTRACTION,
    HEADS,
    IMAGE_CLASSIFICATION,
    QUESTION_ANSWERING,
    TEXT_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    Head,
    Task,
)
from .heads.question_answering import SQUAD, UNANSWERABLE
from .heads.token_classification import CONLL
from .metrics import Measure, accuracy, matthews_correlation, mean_accuracy_f1, mean_pearson_spearman, spearman
from .names import TITLES, is_task_file, task_name
from .task_file import check_files, read_task_file

__all__ = ["TASKS", "Task", "get_task", "own_task"]

_ONE, _TWO, _QUESTIONS = ("sentence",), ("sentence1", "sentence2"), ("question1", "question2")
_ENTAILED = ("entailment", "not_entailment")
_MNLI_LABELS, _MNLI_DEV = ("entailment", "neutral", "contradiction"), ("validation_matched", "validation_mismatched")
_ACCEPTABLE = ("unacceptable", "acceptable")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR: dict[str, Any] = {"head": IMAGE_CLASSIFICATION, "dev_splits": ("test",), "repository": "uoft-cs/cifar10"}
_Names = tuple[str, ...]


def _task(
    name: str,
    columns: _Names,
    labels: _Names | None,
    measure: Measure,
    *lengths: Any,
    head: Head = TEXT_CLASSIFICATION,
    **more: Any,
) -> Task:
    """A table row whose selecting metric carries the name of the function that measures it."""
    return Task(name, TITLES[name], columns, labels, measure.__name__, measure, head, *lengths, **more)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        # name, text columns, labels, measure, max length, batch, evaluate every
        _task("cola", _ONE, _ACCEPTABLE, matthews_correlation, 64, 16, 50),
        _task("sst2", _ONE, ("negative", "positive"), accuracy, 64, 32, 100),
        _task("mrpc", _TWO, ("not_equivalent", "equivalent"), mean_accuracy_f1, 128, 32, 50),
        _task("stsb", _TWO, None, mean_pearson_spearman, 128, 32, 100),
        _task("qqp", _QUESTIONS, ("not_duplicate", "duplicate"), mean_accuracy_f1, 128, 32, 1000),
        _task("mnli", ("premise", "hypothesis"), _MNLI_LABELS, accuracy, 128, 32, 8000, dev_splits=_MNLI_DEV),
        _task("qnli", ("question", "sentence"), _ENTAILED, accuracy, 128, 32, 1000),
        _task("rte", _TWO, _ENTAILED, accuracy, 128, 32, 20),
        _task("wnli", _TWO, ("not_entailment", "entailment"), accuracy, 128, 32, 20),
        _task("features", _TWO, None, spearman, 128, 32, 100, head=FEATURE_EXTRACTION),
        _task("demo", _ONE, _ACCEPTABLE, accuracy, 32, 32, 50),
        Task("squad", TITLES["squad"], **SQUAD, head=QUESTION_ANSWERING, repository="rajpurkar/squad"),
        Task("squad_v2", TITLES["squad_v2"], **SQUAD, head=UNANSWERABLE, repository="rajpurkar/squad_v2"),
        Task("conll2003", TITLES["conll2003"], **CONLL, head=TOKEN_CLASSIFICATION, repository="lhoestq/conll2003"),
        _task("cifar10", (), _CIFAR10, accuracy, None, 64, 100, **_CIFAR),
    )
}


def get_task(name: str) -> Task:
    """The task of that name, in the hub's spelling or the paper's, in any case; or that of a task file.

    Raises TrituneError for an unknown name, listing the known ones, and for a task file that cannot be used.

    >>> get_task("STS-B") is get_task("stsb")
    True
    """
    return own_task(**read_task_file(name)) if is_task_file(name) else TASKS[task_name(name)]


def own_task(
    kind: str,
    files: Mapping[str, Path],
    columns: Sequence[str] | None = None,
    label_column: str | None = None,
    **options: Any,
) -> Task:
    """A task of the user's own files.

    Args:
        kind: a name of `HEADS`.
        files: "train" and "validation" to their files (or folders).
        columns: that hold the inputs; None looks for the usual ones.
        label_column: that holds the label; None looks for "label".
        **options: of the kind, see `Head.file_options`; None is as if it were not given.

    Raises:
        TrituneError: there is no such kind, or a file cannot be used.
    """
    if kind not in HEADS:
        raise TrituneError(f"there is no kind of task {kind!r}; known are {', '.join(HEADS)}")
    head, files = HEADS[kind], check_files(files, HEADS[kind].reads_hub)
    options = {name: value for name, value in options.items() if value is not None}
    # Every task file names the labels; a kind that finds them by itself must find those.
    labels = None if "labels" in head.file_options else options.pop("labels", None)
    metric = None if "metric" in head.file_options else options.pop("metric", None)
    if unknown := options.keys() - {*head.file_options}:
        raise TrituneError(f"{kind}: does not take {', '.join(sorted(unknown))}")
    fields = head.describe(files, columns, label_column, **options)
    title = f"{kind} of {(files.get('validation') or files['train']).name}"
    values: dict[str, Any] = {"name": kind, "title": title, "head": head, "files": files}
    task = Task(**values | fields)
    if labels and task.labels is not None and tuple(labels) != task.labels:
        raise TrituneError(f"{title}: its labels are {shown(list(task.labels))}, expected {shown(list(labels))}")
    if metric and metric != task.metric:
        raise TrituneError(f"metric: checkpoints of {kind} are selected by {task.metric}, not by {shown(metric)}")
    return task
