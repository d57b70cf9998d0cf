"""Texts, or pairs of texts, with a class, several classes or a score: which columns hold them, which rows lack them."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedConfig

from ...errors import TrituneError, number_of, shown
from ...tasks.data.splitting import Example, Label, placed_at
from ...tasks.heads.labels import SEPARATOR
from ...tasks.heads.text import text_columns
from ...tasks.table import listed, number_in, write_table
from ..reading import Reading, Remark, Row
from ..request import Request
from ..table import Table, check_columns, classes_line, conflicts, lengths_line, teacher_labels

# Names under which people keep the label, tried in this order, in any case.
_LABELS = (
    "label",
    "labels",
    "class",
    "category",
    "target",
    "sentiment",
    "intent",
    "topic",
    "tag",
    "tags",
    "categories",
    "y",
    "rating",
    "score",
)
_NOTHING = ("", "nan", "null", "n/a")
# As many classes are taken for a column of numbers or ids, if most of them are seen once.
_MANY_CLASSES = 20
# A column in which this share of the cells are numbers is one of numbers.
_MOSTLY = 0.9
_SKEW = 4
_FLAGS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
# The column of the parts that holds what was in several columns.
_JOINED = "labels"


@dataclass(frozen=True)
class Texts(Table):
    """A table of texts and labels.

    Attributes:
        text_columns, label_column: by name; columns of 0 and 1 for each of several labels have commas between.
        problem: one of `names.PROBLEMS`.
    """

    text_columns: tuple[str, ...]
    label_column: str
    problem: str

    task_kind = "text-classification"
    ending = ".csv"

    @classmethod
    def fits(cls, reading: Reading) -> bool:
        """Any table may be one."""
        return True

    @classmethod
    def of(cls, reading: Reading, request: Request) -> "Texts":
        """See `understood`."""
        return understood(reading, request.text_columns, request.label_column)

    @property
    def columns(self) -> dict[str, Any]:
        """Those of the file."""
        return {"texts": list(self.text_columns), "label": self.label_column}

    @property
    def metric(self) -> str | None:
        """Macro F1 where classes are skewed."""
        if self.labels is None or self.problem == "multi_label":
            return None
        return "macro_f1" if max(self.labels.values()) >= _SKEW * min(self.labels.values()) else None

    @property
    def has_classes(self) -> bool:
        """Of one label a row."""
        return self.problem == "single_label"

    @property
    def is_single_text(self) -> bool:
        """Not of pairs."""
        return len(self.text_columns) == 1

    def options(self, labels: tuple[str, ...] | None) -> dict[str, Any]:
        """Labels, problem and metric."""
        return {"labels": labels, "problem": self.problem, "metric": self.metric}

    def teacher(self, config: PreTrainedConfig) -> tuple[str, ...] | None:
        """See `teacher_labels`."""
        return teacher_labels(config, None if self.labels is None else tuple(self.labels), problem=self.problem)

    def described(self) -> list[str]:
        """Columns, lengths of the texts, and the labels."""
        lengths = lengths_line((sum(map(len, example.texts)) for example in self.examples), "characters")
        lines = [f"text: {', '.join(self.text_columns)}; {lengths}"]
        if self.labels is None:
            scores = [float(example.label) for example in self.examples]
            lines.append(f"label: {self.label_column}, a score from {min(scores):g} to {max(scores):g}")
        elif self.problem == "multi_label":
            several = sum(len(example.label) > 1 for example in self.examples)
            none = sum(not example.label for example in self.examples)
            lines.append(f"label: {self.label_column}, several for a row; {classes_line(self.labels, 'labels')}")
            more, without = ("has" if count == 1 else "have" for count in (several, none))
            lines.append(f"{number_of(several, 'rows')} {more} more than one label, {none} {without} none")
        else:
            lines.append(f"label: {self.label_column}, {classes_line(self.labels)}")
        if self.metric:
            lines.append(f"classes are skewed: {self.metric} selects, accuracy is shown beside it")
        return lines

    def write(self, folder: Path, side: str, rows: Sequence[Example]) -> None:
        """As CSV; several labels of a row have bars between."""
        cells: list[dict[str, Any]] = [
            dict(zip(self.text_columns, row.texts, strict=True))
            | {self.label_column: SEPARATOR.join(row.label) if isinstance(row.label, tuple) else row.label}
            for row in rows
        ]
        write_table(self.file(folder, side), cells)

    def facts(self) -> dict[str, Any]:
        """The problem, too."""
        return {"problem": self.problem, **super().facts()}


def understood(reading: Reading, texts: Sequence[str] | None = None, label: str | None = None) -> Texts:
    """Find the texts and the label of every row.

    Args:
        reading: the file.
        texts: columns of one text or of a pair; None goes by their names, or else takes the longest.
        label: its column, or a column of 0 and 1 for each of several labels, with commas between; None goes by its
            name, or else takes the only one with few values.

    Raises:
        TrituneError: no column can be the text or the label, there is a single class, or too few rows.
    """
    notes = list(reading.notes)
    label_column = label or _label_column(reading, notes)
    targets = [label_column] if label_column in reading.columns else [one.strip() for one in label_column.split(",")]
    check_columns(reading, targets)
    columns = _text_columns(reading, targets, texts, notes)
    for column in columns:
        cells = [cell for cell in _cells(reading, column) if cell]
        if cells and all(number_in(cell) is not None for cell in cells):
            raise TrituneError(f"{reading.file}: {column!r} holds numbers ({cells[0]}); name the text's column")
    if reading.rows and all(_textless(row, columns) for row in reading.rows):
        first = reading.rows[0]
        raise TrituneError(f"{reading.file}: no row can be used; {placed_at(first.line)}: {_textless(first, columns)}")
    many = len(targets) > 1 or any(_holds_several(row.cells.get(label_column)) for row in reading.rows)
    remarks, rows = list(reading.remarks), []
    for row in reading.rows:
        reason = _textless(row, columns) or ("" if many else _unlabelled(row, label_column))
        if reason:
            remarks.append(Remark(row.line, False, reason))
        else:
            rows.append(row)
    if many:
        examples, labels, problem = _several(rows, columns, targets, remarks), None, "multi_label"
        labels = _checked_classes(Counter(name for e in examples for name in e.label), len(rows), targets, reading.file)
    else:
        examples, labels, problem = _labelled(rows, columns, label_column, remarks, reading.file)
        if problem == "regression" and (
            comma := next((one for one in _cells(reading, label_column) if "," in one), "")
        ):
            notes.append(f"the scores have decimal commas: {comma} is {_number(comma):g}")
    remarks += conflicts(examples)
    remarks.sort(key=lambda remark: remark.line)
    shown_column = ",".join(targets) if len(targets) == 1 else _JOINED
    return Texts(reading, examples, remarks, notes, labels, columns, shown_column, problem)


def _cells(reading: Reading, column: str) -> list[str]:
    """The cells of a column as texts, without blanks around them; "" for nothing."""
    cells = (row.cells.get(column) for row in reading.rows)
    return ["" if cell is None else str(cell).strip() for cell in cells]


def _label_column(reading: Reading, notes: list[str]) -> str:
    names = {name.lower(): name for name in reversed(reading.columns)}
    known = [names[name] for name in _LABELS if name in names]
    if known:
        return known[0]
    few = []
    for column in reading.columns:
        values = {*_cells(reading, column)} - {""}
        if 2 <= len(values) <= max(2, len(reading.rows) // 5):
            few.append(column)
    what = "whose values come again and again"
    if not few:
        what = "of numbers with fractions"
        few = [column for column in reading.columns if _are_scores(_cells(reading, column))]
    if len(few) == 1:
        notes.append(f"the label is {few[0]!r}, the only column {what}")
        return few[0]
    raise TrituneError(f"{reading.file}: say with --label-column which of {listed(reading.columns)} holds the label")


def _number(cell: Any) -> float | None:
    """See `number_in`; of a text perhaps with a decimal comma.

    >>> _number("0,5"), _number("1,2,3")
    (0.5, None)
    """
    return number_in(cell.replace(",", ".", 1) if isinstance(cell, str) else cell)


def _are_scores(cells: list[str]) -> bool:
    numbers = [number for number in map(_number, cells) if number is not None]
    return len(numbers) >= max(1, _MOSTLY * len(cells)) and any(map(_is_fraction, numbers))


def _is_fraction(number: float) -> bool:
    return math.isfinite(number) and bool(number % 1)


def _text_columns(
    reading: Reading, labels: Sequence[str], wanted: Sequence[str] | None, notes: list[str]
) -> tuple[str, ...]:
    others = [column for column in reading.columns if column not in labels]
    try:
        return text_columns(others, wanted, reading.file)
    except TrituneError:
        if wanted is not None:
            raise
    words = {column: [cell for cell in _cells(reading, column) if cell] for column in others}
    lengths = {
        column: fmean(map(len, cells))
        for column, cells in words.items()
        if cells and sum(number_in(cell) is not None for cell in cells) < _MOSTLY * len(cells)
    }
    if not lengths:
        raise TrituneError(f"{reading.file}: no column of {listed(others)} holds text; name it with --text-columns")
    longest = max(lengths, key=lambda column: lengths[column])
    notes.append(
        f"the text is {longest!r}, the column with the longest texts; --text-columns names another one, or two"
    )
    return (longest,)


def _textless(row: Row, columns: Sequence[str]) -> str:
    """Why a row has no text; "" if it has."""
    for column in columns:
        cell = row.cells.get(column)
        if cell is None or not str(cell).strip():
            return f"no text in {column!r}"
        if not isinstance(cell, str | int | float):
            return f"what {column!r} holds is no text: {shown(cell)}"
    return ""


def _unlabelled(row: Row, label: str) -> str:
    """Why a row has no label; "" if it has."""
    cell = row.cells.get(label)
    if isinstance(cell, list | dict | bytes):
        return f"the label is {shown(cell)}, neither text nor a number"
    spelt = "" if cell is None else str(cell).strip()
    return f"no label in {label!r}{f' but {spelt!r}' * bool(spelt)}" if spelt.lower() in _NOTHING else ""


def _holds_several(cell: Any) -> bool:
    return isinstance(cell, list) or (isinstance(cell, str) and SEPARATOR in cell)


def _several(
    rows: Sequence[Row], columns: Sequence[str], targets: Sequence[str], remarks: list[Remark]
) -> list[Example]:
    """Examples with any number of labels."""
    examples = []
    for row in rows:
        given = list(_flagged(row, targets)) if len(targets) > 1 else _listed(row.cells.get(targets[0]))
        if wrong := [name for name in given if not isinstance(name, str)]:
            remarks.append(Remark(row.line, False, f"the label {shown(wrong[0])} cannot be read"))
        else:
            examples.append(_example(row, columns, tuple(dict.fromkeys(given))))
    return examples


def _listed(cell: Any) -> list[Any]:
    """The names in one cell; what is no name stays as it is."""
    parts = cell if isinstance(cell, list) else [] if cell is None else [cell]
    if isinstance(cell, str):
        parts = [part for part in cell.split(SEPARATOR) if part.strip().lower() not in _NOTHING]
    readable = [isinstance(part, str | int | float) and SEPARATOR not in str(part) for part in parts]
    return [_name(part) if fine else [part] for part, fine in zip(parts, readable, strict=True)]


def _flagged(row: Row, targets: Sequence[str]) -> Iterator[Any]:
    """The columns that hold 1; what is neither 0 nor 1 stays as it is."""
    for column in targets:
        flag = _FLAGS.get(str(row.cells.get(column)).strip().lower())
        if flag is None:
            yield [row.cells.get(column)]
        elif flag:
            yield column


def _checked_classes(counts: Counter[str], rows: int, targets: Sequence[str], file: str) -> dict[str, int]:
    """The classes in id order with their counts; TrituneError if these cannot be classes."""
    column = ",".join(targets)
    if len(counts) < 2:
        found = f"the only label is {listed(counts)}" if counts else "no row has a label"
        raise TrituneError(f"{file}: {found} (column {column!r}); at least two are needed")
    if len(counts) > _MANY_CLASSES and 2 * len(counts) > rows:
        raise TrituneError(
            f"{file}: {column!r} has {len(counts)} different values in {rows} rows, too many for classes; name "
            "another column with --label-column"
        )
    order = sorted(counts, key=lambda name: (number_in(name) is None, number_in(name) or 0.0, name))
    return {name: counts[name] for name in order}


def _labelled(
    rows: Sequence[Row], columns: Sequence[str], column: str, remarks: list[Remark], file: str
) -> tuple[list[Example], dict[str, int] | None, str]:
    """Examples, how often each class occurs (None for scores), and the problem."""
    cells = [_name(row.cells[column]) for row in rows]
    numbers = [_number(cell) for cell in cells]
    known = [number for number in numbers if number is not None]
    if len(known) >= _MOSTLY * len(cells) and any(map(_is_fraction, known)):
        scores = []
        for row, number in zip(rows, numbers, strict=True):
            if number is None or abs(number) == float("inf"):
                remarks.append(Remark(row.line, False, f"the label {shown(row.cells[column])} is not a number"))
            else:
                scores.append(_example(row, columns, number))
        if len({example.label for example in scores}) < 2:
            raise TrituneError(f"{file}: every row has the same label; there is nothing to learn")
        return scores, None, "regression"
    labels = _checked_classes(Counter(cells), len(cells), [column], file)
    return [_example(row, columns, name) for row, name in zip(rows, cells, strict=True)], labels, "single_label"


def _name(cell: Any) -> str:
    """A label as text; a whole number loses the `.0` that pandas gives it.

    >>> _name(1.0), _name(" a "), _name("0.0"), _name(True)
    ('1', 'a', '0', 'true')
    """
    if isinstance(cell, bool):
        return str(cell).lower()
    text = str(cell).strip()
    whole, point, zeros = text.partition(".")
    return whole if point and not zeros.strip("0") and whole.lstrip("-").isdigit() else text


def _example(row: Row, columns: Sequence[str], label: Label) -> Example:
    return Example(row.line, tuple(str(row.cells[column]) for column in columns), label, row.cells)
