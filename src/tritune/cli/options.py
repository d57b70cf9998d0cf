"""Options that several subcommands share, and what happens before any of them works."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..checkpoints.hub import located
from ..errors import TrituneError
from ..tasks.names import KINDS, check_problem, is_task_file, task_name

if TYPE_CHECKING:
    from ..tasks import registry as tasks

Task = Annotated[
    str,
    typer.Option(
        help="A task: sst2 (or SST-2), cola, mrpc, …; or a task file, which training on your own files writes next to "
        "the model: teacher/task.yaml.",
        metavar="NAME",
    ),
]
AnyTask = Annotated[
    str,
    typer.Option(
        help="A task: sst2 (or SST-2), cola, mrpc, squad, conll2003, cifar10, features, …. For your own --train-file "
        "and --dev-file: text-classification, question-answering, token-classification, image-classification or "
        "feature-extraction. Or a task file, which such a training writes: teacher/task.yaml.",
        metavar="NAME",
    ),
]
TrainFile = Annotated[
    Path | None,
    typer.Option(
        help="Your own training data: .csv, .tsv, .json, .jsonl or .parquet; SQuAD JSON for questions, CoNLL columns "
        "for tags; for images a folder with one subfolder per class, or a hub data set.",
        metavar="FILE",
    ),
]
DevFile = Annotated[
    Path | None,
    typer.Option(
        help="Your own held-out data, for evaluation and model selection. By default a tenth of the training rows, at "
        "most 2000, which are then not trained on: the same ones for the same file, whatever the recipe's seed.",
        metavar="FILE",
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        "--text-columns",
        "--columns",
        help="Column of the text, or both of a pair, separated by a comma; or the column of the words or images. "
        "By default the usual names are tried. Image folders and CoNLL files have no columns.",
        metavar="NAMES",
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of the label, by default `label`, or `tags` for words. Several names, separated by commas, are "
        "columns of 0 and 1, one per label.",
        metavar="NAME",
    ),
]
Problem = Annotated[
    str | None,
    typer.Option(
        help="single_label (words and integers are classes), multi_label (lists, or names separated by |) or "
        "regression (numbers). By default inferred from the label column or from the fine-tuned model.",
        metavar="WHAT",
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Names of the labels in id order, separated by commas: of a model that calls them LABEL_0, LABEL_1, …, or "
        "of the numbers in your files. By default the model's own, or for a new model those of the training file.",
        metavar="NAMES",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder of the task's original files. By default the data set is downloaded from the hub."),
]
Output = Annotated[Path, typer.Option(help="Output folder; it must be empty or new.", metavar="FOLDER")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in the output folder.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Resume the interrupted run in the output folder, if there is one.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key of the recipe; may be repeated.", metavar="KEY=VALUE")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout; everything else goes to stderr.")]


@dataclass(frozen=True)
class OwnFiles:
    """The options that describe the user's own files."""

    train_file: Path | None
    dev_file: Path | None
    columns: str | None
    label_column: str | None
    problem: str | None
    labels: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Those given, as `registry.own_task` calls them."""
        files = {"train": self.train_file, "validation": self.dev_file}
        given = {
            "columns": None if self.columns is None else comma_separated(self.columns),
            "label_column": self.label_column,
            "problem": self.problem,
            "labels": None if self.labels is None else comma_separated(self.labels),
            "files": {split: path for split, path in files.items() if path is not None} or None,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Asked:
    """`--task`, with the names that `--labels` gives to the labels of a task file; both as written."""

    task: str
    labels: str | None = None

    @property
    def own(self) -> OwnFiles:
        """What `check_task` and `open_task` take beside the task."""
        return OwnFiles(None, None, None, None, None, self.labels)


def comma_separated(text: str) -> list[str]:
    """The parts of `a, b`, without the blanks around them."""
    return [part.strip() for part in text.split(",")]


def check_task(name: str, own: OwnFiles | None = None, *, trains: bool = True) -> None:
    """Check `--task` and the options of the user's own files by their names, before anything heavy is imported.

    Args:
        name, own, trains: see `open_task`; `own` is None where the command takes no such files.

    Raises:
        TrituneError: the name is not known, options do not fit it, or one is missing.
    """
    given = own.arguments() if own is not None else {}
    check_problem(given.get("problem"))
    names = given.get("labels", [])
    if not all(names) or len(set(names)) < len(names):
        raise TrituneError(f"--labels must give each label a name of its own; got {', '.join(names)}")
    if is_task_file(name):
        return
    if name in KINDS and "files" in given:
        _check_splits(name, given["files"], trains)
        return
    task_name(name)
    if given:
        raise TrituneError(f"--task {name}: a task of the table, whose columns are known; pass its files with --data")


def _check_splits(name: str, files: Mapping[str, Path], trains: bool) -> None:
    """Training needs a training file, some of whose rows can be held out; a score needs any file."""
    if "train" not in files and (trains or "validation" not in files):
        raise TrituneError(f"--task {name}: {'--train-file' if trains else '--dev-file'} is missing")


def begin(*models: str | Path | None) -> None:
    """Check that models exist, then silence transformers; whatever is heavy is imported after this.

    Silent are transformers' own progress bars and messages; our progress, warnings and errors stay.

    Args:
        *models: folders or hub names; None for those that are not given.

    Raises:
        TrituneError: a model is neither a folder nor a name that can be reached on the hub.
    """
    for model in models:
        if model:
            located(model)
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def open_task(name: str, own: OwnFiles, model: str | None = None, *, trains: bool = True) -> "tasks.Task":
    """The task that `--task` and the options of the user's own files describe; what was read is shown on stderr.

    Args:
        name: of a task, a kind of task, or a task file, whose values the options replace.
        own: those options.
        model: a fine-tuned model, whose labels are used; None before fine-tuning.
        trains: whether a training file is needed.

    Raises:
        TrituneError: as `check_task`, or a file cannot be used.
    """
    from ..checkpoints.load import load_config
    from ..tasks.heads import HEADS
    from ..tasks.registry import get_task, own_task
    from ..tasks.task_file import read_task_file
    from .show import show_task

    check_task(name, own, trains=trains)
    given = own.arguments()
    if not (given or is_task_file(name)):
        return get_task(name)
    values = read_task_file(name) if is_task_file(name) else {"kind": name}
    files = values.get("files", {}) | given.get("files", {})
    _check_splits(name, files, trains)
    if not trains and "validation" in files:
        files.pop("train", None)  # a score on it may be asked for
    known: dict[str, Any] = {}
    if model is not None and (head := HEADS.get(values["kind"])) is not None:
        config = load_config(model)
        head.check_architecture(config, model)
        known = head.known(config)
    task = own_task(**(known | values | given | {"files": files}))
    show_task(task)
    return task
