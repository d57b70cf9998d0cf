"""Options that several subcommands share, and what happens before any of them works."""

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
        help="A task of the table: sst2 or SST-2, cola, mrpc, …; or a task file, as a training on one's own files "
        "leaves it beside the model: teacher/task.yaml.",
        metavar="NAME",
    ),
]
AnyTask = Annotated[
    str,
    typer.Option(
        help="A task of the table: sst2 or SST-2, cola, mrpc, squad, conll2003, cifar10, features, …; for one's own "
        "--train-file and --dev-file their kind: text-classification, question-answering, token-classification, "
        "image-classification or feature-extraction; or a task file, as such a training leaves it: teacher/task.yaml.",
        metavar="NAME",
    ),
]
TrainFile = Annotated[
    Path | None,
    typer.Option(
        help="One's own training data: .csv, .tsv, .json, .jsonl or .parquet; SQuAD's JSON for questions, columns as "
        "CoNLL's for tags, a folder with one folder a class, or a hub name, for images.",
        metavar="FILE",
    ),
]
DevFile = Annotated[Path | None, typer.Option(help="One's own dev data, which selects and scores.", metavar="FILE")]
Columns = Annotated[
    str | None,
    typer.Option(
        "--text-columns",
        "--columns",
        help="The column of the text, or the two of a pair, with a comma between; of the words, or of the images. "
        "Without it, the usual names are looked for. Folders and lines of word and tag have none.",
        metavar="NAMES",
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        help="The column of the label; with commas, a column of 0 and 1 for each of many labels. Without it: label, "
        "of words tags.",
        metavar="NAME",
    ),
]
Problem = Annotated[
    str | None,
    typer.Option(
        help="single_label (words and whole numbers are classes), multi_label (lists, or names with | between) or "
        "regression (numbers). Without it, the label column's values say which, or the fine-tuned model.",
        metavar="WHAT",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder of the task's original files. Without it, the data set is read from the hub."),
]
Output = Annotated[Path, typer.Option(help="Folder to write; it must be empty or new.", metavar="FOLDER")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that lies in the output folder.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run that was stopped in the output folder, if there is one.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key of the recipe; may be given often.", metavar="KEY=VALUE"),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; everything else is on stderr.")]


@dataclass(frozen=True)
class OwnFiles:
    """The options that say what one's own files are."""

    train_file: Path | None
    dev_file: Path | None
    columns: str | None
    label_column: str | None
    problem: str | None

    def arguments(self) -> dict[str, Any]:
        """Those given, as `registry.own_task` calls them."""
        files = {"train": self.train_file, "validation": self.dev_file}
        given = {
            "columns": None if self.columns is None else comma_separated(self.columns),
            "label_column": self.label_column,
            "problem": self.problem,
            "files": {split: path for split, path in files.items() if path is not None} or None,
        }
        return {name: value for name, value in given.items() if value is not None}


def comma_separated(text: str) -> list[str]:
    """The parts of `a, b`, without the blanks around them."""
    return [part.strip() for part in text.split(",")]


def check_task(name: str, own: OwnFiles | None = None, *, trains: bool = True) -> None:
    """Check `--task` and the options of one's own files as far as names go, before anything heavy is imported.

    Args:
        name, own, trains: see `open_task`; no `own` where the command takes no files of one's own.

    Raises:
        TrituneError: the name is not known, options do not fit it, or one is missing.
    """
    given = own.arguments() if own is not None else {}
    check_problem(given.get("problem"))
    if is_task_file(name):
        return
    if name in KINDS and "files" in given:
        _check_splits(name, given["files"], trains)
        return
    task_name(name)
    if given:
        raise TrituneError(f"--task {name}: a task of the table, whose columns are known; --data names its files")


def _check_splits(name: str, files: Mapping[str, Path], trains: bool) -> None:
    for option, split in (("--train-file", "train"), ("--dev-file", "validation")):
        if split not in files and (trains or split == "validation"):
            raise TrituneError(f"--task {name}: {option} is missing")


def check_models(*sources: str | Path | None) -> None:
    """Check that models can be had, before anything heavy is imported.

    Args:
        *sources: folders or hub names; None for those that are not given.

    Raises:
        TrituneError: there is no such folder, and no such name on the hub or no way to it.
    """
    for source in sources:
        if source:
            located(source)


def open_task(name: str, own: OwnFiles, model: str | None = None, *, trains: bool = True) -> "tasks.Task":
    """The task that `--task` and the options of one's own files ask for; what was taken of a file is said on stderr.

    Args:
        name: of the table, a kind, or a task file, whose values the options replace.
        own: those options.
        model: one that knows the labels already; None for one that is fine-tuned first.
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
    if not trains:
        files.pop("train", None)  # a score on it may be asked for
    kind = values["kind"]
    known = HEADS[kind].known(load_config(model)) if model is not None and kind in HEADS else {}
    task = own_task(**(known | values | given | {"files": files}))
    show_task(task)
    return task


def quiet_libraries() -> None:
    """Silence what transformers says about itself; training bars, warnings of ours and errors stay."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
