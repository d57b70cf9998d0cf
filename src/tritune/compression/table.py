"""What every kind of data is once it was read: examples, what was wrong with other rows, and the task they make."""

from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from ..engine.answers import label_names
from ..errors import TrituneError, on_one_line, shown
from ..tasks.data.splitting import DEV, TEST, TRAIN, Example, Label, Place, placed_at
from ..tasks.registry import Task, own_task
from ..tasks.table import listed
from .reading import Reading, Remark
from .request import Request

FEWEST_ROWS = 10
_SHOWN = 20


@dataclass(frozen=True)
class Table(ABC):
    """Data of one kind.

    Attributes:
        reading: the file as it was read.
        examples: the rows that can be used.
        remarks: on rows that cannot, and on what else is odd about single ones.
        notes: what was guessed, a line each.
        labels: the classes with their counts, in id order; None where there are none.
        task_kind: a name of `HEADS`.
        rows_are: what the rows are called.
        input_is: what may have another label in another row.
        teacher_is: what a model must be that needs no fine-tuning.
        ending: of the files of the parts.
        longest: tokens that an input may have at most.
        takes_pairs: whether it may be scored on pairs of texts.
    """

    reading: Reading
    examples: list[Example]
    remarks: list[Remark]
    notes: list[str]
    labels: dict[str, int] | None

    task_kind: ClassVar[str]
    rows_are: ClassVar[str] = "rows"
    input_is: ClassVar[str] = "a text"
    teacher_is: ClassVar[str] = "classifier with these labels"
    ending: ClassVar[str] = ".jsonl"
    longest: ClassVar[int] = 512
    takes_pairs: ClassVar[bool] = False

    def __post_init__(self):
        if len(self.examples) < FEWEST_ROWS:
            some = f"; {self.remarks[0].place}: {self.remarks[0].reason}" if self.remarks else ""
            raise TrituneError(
                f"{self.reading.file}: {len(self.examples)} {self.rows_are} can be used; at least {FEWEST_ROWS} are "
                f"needed{some}"
            )

    @classmethod
    @abstractmethod
    def fits(cls, reading: Reading) -> bool:
        """Whether a file holds data of this kind, as far as its columns say."""

    @classmethod
    def may_be(cls, reading: Reading) -> bool:
        """Whether it can hold such data if somebody says that it does."""
        return cls.fits(reading)

    @classmethod
    @abstractmethod
    def of(cls, reading: Reading, request: Request) -> "Table":
        """The rows of a file as this kind takes them.

        Raises:
            TrituneError: a column is missing, there is nothing to learn, or too few rows.
        """

    @abstractmethod
    def described(self) -> list[str]:
        """What the inputs and the labels were taken for, a line each."""

    @abstractmethod
    def teacher(self, config: PreTrainedConfig) -> tuple[str, ...] | None:
        """The labels, in its own order, of a model that answers as this data asks; None if it must be fine-tuned."""

    @abstractmethod
    def write(self, folder: Path, side: str, rows: Sequence[Example]) -> None:
        """Write a part into a folder, as `task` reads it."""

    @property
    @abstractmethod
    def columns(self) -> dict[str, Any]:
        """`texts` and `label`: the columns of the parts by name; empty where their files have none."""

    @property
    def metric(self) -> str | None:
        """What selects checkpoints; None for what is usual for the kind."""
        return None

    @property
    def has_classes(self) -> bool:
        """Whether every row has one of some classes."""
        return False

    @property
    def is_single_text(self) -> bool:
        """Whether the inputs are texts of which the middle can be left out."""
        return False

    @property
    def evaluated(self) -> dict[str, int]:
        """How many inputs of each part a model answers, where that is not the number of its rows."""
        return {}

    def legible(self, example: Example) -> tuple[str, ...]:
        """What a reader can be shown of an input besides its place."""
        return example.texts

    def options(self, labels: tuple[str, ...] | None) -> dict[str, Any]:
        """What `own_task` takes besides files and columns."""
        return {"labels": labels}

    def file(self, folder: Path, side: str) -> Path:
        """Where a part lies."""
        return folder / f"{side}{self.ending}"

    def task(self, folder: Path, labels: tuple[str, ...] | None, test: bool = False) -> Task:
        """The task of the parts in a folder, the dev part as its validation file; of the test part alone for scores.

        Args:
            folder: of the parts.
            labels: in the model's order.
            test: whether it is the test part.
        """
        files = {"train": self.file(folder, TRAIN), "validation": self.file(folder, DEV)}
        if test:
            files = {"validation": self.file(folder, TEST)}
        columns = self.columns
        return own_task(self.task_kind, files, columns.get("texts"), columns.get("label"), **self.options(labels))

    def lines(self, folder: Path) -> Task | None:
        """Where the test part was made of other data: the task of this data's own rows that are not learned from."""
        return None

    def facts(self) -> dict[str, Any]:
        """What `metrics.json` says of the data."""
        return {"labels": self.labels, "columns": self.columns}


def teacher_labels(
    config: PreTrainedConfig, labels: Sequence[str] | None, ending: str = "SequenceClassification", problem: str = ""
) -> tuple[str, ...] | None:
    """The labels of a classifier in its own order if they are those of a file; else None. Of scores it is ().

    A model without names of labels knows whole numbers below their count.

    Args:
        config: of the model.
        labels: of the file; None for scores.
        ending: of the model's class.
        problem: `multi_label` where rows have any number of labels.
    """
    if not any(ending in name for name in config.architectures or ()):
        return None
    if labels is None:
        return () if config.num_labels == 1 else None
    many = config.problem_type == "multi_label_classification"
    if many != (problem == "multi_label") or config.problem_type == "regression":
        return None
    names = label_names(config.id2label)
    generic = names == tuple(f"LABEL_{index}" for index in range(len(names)))
    if generic and tuple(labels) == tuple(map(str, range(len(names)))):
        return names
    return names if sorted(names) == sorted(labels) else None


def counted(labels: Iterable[str], order: Sequence[str] | None = None) -> dict[str, int]:
    """How often each label occurs, in a given order or sorted.

    >>> counted(["b", "a", "b"])
    {'a': 1, 'b': 2}
    """
    counts = Counter(labels)
    return {name: counts[name] for name in (sorted(counts) if order is None else order)}


def conflicts(examples: Sequence[Example], what: str = "text") -> list[Remark]:
    """A remark on every row whose very inputs have another label elsewhere.

    Args:
        examples: of one label each.
        what: the input is called.
    """
    labels: dict[tuple[str, ...], dict[Label, Place]] = defaultdict(dict)
    for example in examples:
        labels[example.texts].setdefault(example.label, example.line)
    return [
        Remark(example.line, True, f"the same {what} has another label: {shown(other)} in {placed_at(line)}")
        for example in examples
        if len(found := labels[example.texts]) > 1
        for other, line in [next(pair for pair in found.items() if pair[0] != example.label)]
    ]


def classes_line(labels: dict[str, int], what: str = "classes") -> str:
    """The classes with their counts, the first of them if there are many.

    >>> classes_line({"no": 3, "yes": 2})
    '2 classes: no 3, yes 2'
    """
    counts = [f"{on_one_line(name)} {count}" for name, count in list(labels.items())[:_SHOWN]]
    more = f", and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return f"{len(labels)} {what}: {', '.join(counts)}{more}"


def lengths_line(lengths: Iterable[int], unit: str) -> str:
    """The median and the maximum of some lengths.

    >>> lengths_line([3, 1, 2], "words")
    '2 words in the middle, 3 at most'
    """
    ordered = sorted(lengths)
    return f"{ordered[len(ordered) // 2]} {unit} in the middle, {ordered[-1]} at most"


def check_columns(reading: Reading, wanted: Iterable[str]) -> None:
    """Raise TrituneError if a file lacks one of these columns."""
    if missing := [column for column in wanted if column not in reading.columns]:
        raise TrituneError(f"{reading.file}: no column {listed(missing)}; there are {listed(reading.columns)}")
