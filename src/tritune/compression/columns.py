"""What a table of texts and labels asks: which columns hold them, classes or scores, and which rows cannot be used."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..errors import TrituneError, shown
from ..tasks.data.splitting import Example
from ..tasks.heads.labels import SEPARATOR
from ..tasks.heads.text import text_columns
from ..tasks.table import listed, number_in
from .reading import Reading, Remark, Row

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
    "y",
    "rating",
    "score",
)
_NOTHING = ("", "nan", "null", "n/a")
# As many classes are taken for a column of numbers or ids, if most of them are seen once.
_MANY_CLASSES = 20
# A column in which this share of the cells are numbers is one of numbers.
_MOSTLY = 0.9
FEWEST_ROWS = 10
_SKEW = 4


@dataclass(frozen=True)
class Table:
    """A file of texts and labels.

    Attributes:
        reading: the file as it was read.
        text_columns, label_column: by name.
        labels: the classes in order, with their counts; None for scores.
        examples: the rows that can be used.
        remarks: on rows that cannot, and on texts with several labels.
        notes: what was guessed, a line each.
    """

    reading: Reading
    text_columns: tuple[str, ...]
    label_column: str
    labels: dict[str, int] | None
    examples: list[Example]
    remarks: list[Remark]
    notes: list[str]

    @property
    def problem(self) -> str:
        """`single_label` or `regression`."""
        return "regression" if self.labels is None else "single_label"

    @property
    def metric(self) -> str | None:
        """What selects checkpoints: macro F1 where classes are skewed; None for the usual metric of the problem."""
        if self.labels is None:
            return None
        return "macro_f1" if max(self.labels.values()) >= _SKEW * min(self.labels.values()) else None


def understood(reading: Reading, texts: Sequence[str] | None = None, label: str | None = None) -> Table:
    """Find the texts and the label of every row.

    Args:
        reading: the file.
        texts: columns of one text or of a pair; None goes by their names, or else takes the longest.
        label: its column; None goes by its name, or else takes the only one with few values.

    Raises:
        TrituneError: no column can be the text or the label, there is a single class, or too few rows.
    """
    notes = list(reading.notes)
    label_column = label or _label_column(reading, notes)
    _check_columns(reading, [label_column])
    columns = _text_columns(reading, label_column, texts, notes)
    for column in columns:
        cells = [cell for cell in _cells(reading, column) if cell]
        if cells and all(number_in(cell) is not None for cell in cells):
            raise TrituneError(f"{reading.file}: {column!r} holds numbers ({cells[0]}); name the text's column")
    remarks, rows = list(reading.remarks), []
    for row in reading.rows:
        reason = _unusable(row, columns, label_column)
        if reason:
            remarks.append(Remark(row.line, False, reason))
        else:
            rows.append(row)
    examples, labels = _labelled(rows, columns, label_column, remarks, reading.file)
    if len(examples) < FEWEST_ROWS:
        raise TrituneError(f"{reading.file}: {len(examples)} rows can be used; at least {FEWEST_ROWS} are needed")
    remarks += _conflicts(examples)
    return Table(reading, columns, label_column, labels, examples, sorted(remarks, key=lambda r: r.line), notes)


def _check_columns(reading: Reading, wanted: Sequence[str]) -> None:
    if missing := [column for column in wanted if column not in reading.columns]:
        raise TrituneError(f"{reading.file}: no column {listed(missing)}; there are {listed(reading.columns)}")


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


def _are_scores(cells: list[str]) -> bool:
    numbers = [number for number in map(number_in, cells) if number is not None]
    return len(numbers) >= max(1, _MOSTLY * len(cells)) and any(map(_is_fraction, numbers))


def _is_fraction(number: float) -> bool:
    return math.isfinite(number) and bool(number % 1)


def _text_columns(reading: Reading, label: str, wanted: Sequence[str] | None, notes: list[str]) -> tuple[str, ...]:
    others = [column for column in reading.columns if column != label]
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
    notes.append(f"the text is {longest!r}, the column with the longest; --text-columns names another one, or two")
    return (longest,)


def _unusable(row: Row, columns: Sequence[str], label: str) -> str:
    for column in columns:
        cell = row.cells.get(column)
        if cell is None or not str(cell).strip():
            return f"no text in {column!r}"
    cell = row.cells.get(label)
    if isinstance(cell, list | dict):
        return f"the label is {shown(cell)}, neither text nor a number"
    return f"no label in {label!r}" if cell is None or str(cell).strip().lower() in _NOTHING else ""


def _labelled(
    rows: Sequence[Row], columns: Sequence[str], column: str, remarks: list[Remark], file: str
) -> tuple[list[Example], dict[str, int] | None]:
    """Examples, and how often each class occurs; None for scores."""
    cells = [_name(row.cells[column]) for row in rows]
    numbers = [number_in(cell) for cell in cells]
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
        return scores, None
    counts = Counter(cells)
    if len(counts) < 2:
        found = f"the only label is {listed(counts)}" if counts else "no row has a label"
        raise TrituneError(f"{file}: {found} (column {column!r}); at least two are needed")
    if parted := [name for name in counts if SEPARATOR in name]:
        raise TrituneError(
            f"{file}: the label {shown(parted[0])} holds {SEPARATOR}, as several labels of one row do, which `tritune "
            "finetune` and `tritune train` can learn; rename it if it is one"
        )
    if len(counts) > _MANY_CLASSES and 2 * len(counts) > len(cells):
        raise TrituneError(
            f"{file}: {column!r} has {len(counts)} different values in {len(cells)} rows, too many for classes; name "
            "another column with --label-column"
        )
    order = sorted(counts, key=lambda name: (number_in(name) is None, number_in(name) or 0.0, name))
    examples = [_example(row, columns, name) for row, name in zip(rows, cells, strict=True)]
    return examples, {name: counts[name] for name in order}


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


def _example(row: Row, columns: Sequence[str], label: str | float) -> Example:
    return Example(row.line, tuple(str(row.cells[column]) for column in columns), label, row.cells)


def _conflicts(examples: Sequence[Example]) -> list[Remark]:
    """A remark on every row whose very texts have another label elsewhere."""
    labels: dict[tuple[str, ...], dict[str | float, int]] = defaultdict(dict)
    for example in examples:
        labels[example.texts].setdefault(example.label, example.line)
    return [
        Remark(example.line, True, f"the same text has another label: {shown(other)} in line {line}")
        for example in examples
        if len(found := labels[example.texts]) > 1
        for other, line in [next(pair for pair in found.items() if pair[0] != example.label)]
    ]
