r"""Reads a folder of original GLUE tsv files.

What: `train.tsv`, `dev.tsv` (MNLI: `dev_matched.tsv`, `dev_mismatched.tsv`) become one `DatasetDict`.
Why by hand: these files have no quoting and no escapes, so a row is what lies between two line feeds and a field what
lies between two tabs. The csv module and pandas both do more than that: csv has a field size limit and trips over a
lone carriage return inside a sentence, pandas fills short rows with NaN, and text-mode reading by `splitlines` breaks
rows at \x85 and \u2028.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, DatasetDict

from ...errors import TrituneError, shown
from ..heads.text_classification import features
from ..registry import Task
from ..table import check_names, listed, number_in, numbered_lines, read_text

# The training rows with variants of them, see `augmented_file`.
AUGMENTED_FILE = "train_aug.tsv"

_STSB_RANGE = (0.0, 5.0)


@dataclass(frozen=True)
class _Layout:
    """Which columns of an original file hold the texts and the label, and what the label looks like there."""

    texts: tuple[str, ...]
    label: str = "label"
    named: bool = False  # the label is written as the class name, not as its id
    header: tuple[str, ...] | None = None  # the columns of a file that does not name them itself
    has_cut_rows: bool = False  # the published file itself has rows that break off


_ONE, _TWO = ("sentence",), ("sentence1", "sentence2")
_LAYOUTS = {
    "cola": _Layout(_ONE, header=("source", "label", "mark", "sentence")),
    "sst2": _Layout(_ONE),
    "mrpc": _Layout(("#1 String", "#2 String"), "Quality"),
    "stsb": _Layout(_TWO, "score"),
    "qqp": _Layout(("question1", "question2"), "is_duplicate", has_cut_rows=True),
    "mnli": _Layout(_TWO, "gold_label", named=True),
    "qnli": _Layout(("question", "sentence"), named=True),
    "rte": _Layout(_TWO, named=True),
    "wnli": _Layout(_TWO),
    "features": _Layout(_TWO, "score"),
    "demo": _Layout(_ONE),
}


def wanted_splits(task: Task, splits: Sequence[str] | None) -> tuple[str, ...]:
    """The splits to load: those asked for, or "train" and the task's dev splits.

    Raises TrituneError for a split the task does not have.
    """
    known = ("train", *task.dev_splits)
    splits = (splits,) if isinstance(splits, str) else splits
    for split in splits or ():
        if split not in known:
            raise TrituneError(f"{task.title} has no split {split!r}: it has {', '.join(known)}")
    return known if splits is None else tuple(splits)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number (from 1) and fields of every line that is not blank."""
    return ((number, line.split("\t")) for number, line in numbered_lines(read_text(path)) if line.strip(" "))


def _label(task: Task, layout: _Layout, text: str, where: str) -> int | float:
    """The label as a class id or a score."""
    if task.labels is None:
        low, high = _STSB_RANGE
        if (score := number_in(text)) is not None and low <= score <= high:  # not NaN either
            return score
        allowed: tuple[str, ...] = (f"a number from {low:g} to {high:g}",)
    else:
        allowed = task.labels if layout.named else tuple(map(str, range(task.num_labels)))
        if text in allowed:
            return allowed.index(text)
    raise TrituneError(f"{where}: label {shown(text)} of {task.title} must be {' or '.join(allowed)}")


@dataclass(frozen=True)
class GlueFile:
    """An original tsv file with all its columns.

    Attributes:
        header: the names of the columns, or None where the file does not name them.
        text_places: the columns of the texts, counted from 0.
        rows: the fields of every row.
        labels: a class id or a score for every row.
    """

    header: list[str] | None
    text_places: list[int]
    rows: list[list[str]]
    labels: list[int | float]


def read_glue_fields(task: Task, path: Path) -> GlueFile:
    """One original tsv file as it is.

    Raises TrituneError, naming file and line, for a file that cannot be read, missing columns, a row with too few or
    too many fields, a label outside the task's set, bytes that are not UTF-8, and a file without rows.
    """
    layout, lines = _LAYOUTS[task.name], _rows(path)
    number, header = (0, list(layout.header)) if layout.header else next(lines, (0, []))
    if not header:
        raise TrituneError(f"{path} is empty")
    if missing := [column for column in (*layout.texts, layout.label) if column not in header]:
        raise TrituneError(f"{path}, line {number}: {task.title} needs the columns {missing}, found [{listed(header)}]")
    check_names(header, f"{path}, line {number}")
    label_place = header.index(layout.label)
    file = GlueFile(None if layout.header else header, [header.index(name) for name in layout.texts], [], [])
    cut = 0
    for number, fields in lines:
        if layout.has_cut_rows and len(fields) < len(header):
            cut += 1
            continue
        # A stray tab or line feed inside a sentence shifts the columns: guessing would train on the wrong text.
        if len(fields) != len(header):
            raise TrituneError(
                f"{path}, line {number}: {len(fields)} columns, expected {len(header)}; repair or drop the row"
            )
        file.rows.append(fields)
        file.labels.append(_label(task, layout, fields[label_place], f"{path}, line {number}"))
    if not file.rows:
        raise TrituneError(f"{path} has no rows")
    if cut:
        warnings.warn(f"{path}: {cut} rows with missing columns were left out, as other readers do", stacklevel=2)
    return file


def read_glue_file(task: Task, path: Path) -> Dataset:
    """One original tsv file as a Dataset with the columns `task.text_columns` and `label`; see `read_glue_fields`."""
    file = read_glue_fields(task, path)
    places = zip(task.text_columns, file.text_places, strict=True)
    texts = {name: [fields[place] for fields in file.rows] for name, place in places}
    return Dataset.from_dict({**texts, "label": file.labels}, features=features(task))


def load_glue_folder(
    task: Task, folder: str | Path, splits: Sequence[str] | None = None, augmented: bool = False
) -> DatasetDict:
    """The task's splits from a folder of original GLUE tsv files.

    `splits` names the wanted ones out of "train" and `task.dev_splits` (None: all); files of others need not exist.
    With `augmented` "train" is read from `train_aug.tsv`.

    Raises TrituneError for an unknown split, a missing folder or file, and as `read_glue_file` does.
    """
    folder = Path(folder)
    # "validation_matched" is dev_matched.tsv
    paths = {split: folder / f"{split.replace('validation', 'dev')}.tsv" for split in wanted_splits(task, splits)}
    if augmented and "train" in paths:
        paths["train"] = folder / AUGMENTED_FILE
    if not folder.is_dir():
        raise TrituneError(f"{folder} is not a folder: give the one that holds {task.title}'s tsv files")
    for path in paths.values():
        if path.name == AUGMENTED_FILE and not path.is_file():
            raise TrituneError(
                f"{path} is missing: augmented: true reads it; make it with `tritune augment --task {task.name} "
                f"--data {folder} --mlm MODEL`"
            )
        if not path.is_file():
            expected = ", ".join(each.name for each in paths.values())
            raise TrituneError(f"{path} is missing: {task.title} is read from {expected}")
    return DatasetDict({split: read_glue_file(task, path) for split, path in paths.items()})
