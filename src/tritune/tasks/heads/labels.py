"""The label column of a user's own table: which problem it poses, the labels' names in id order, and a row's label.

Three problems: `single_label` (one class a row), `multi_label` (any number of labels a row), `regression` (a score).
Many labels of a row are a list (JSON, Parquet), names separated by `|` (CSV), or a column of 0 and 1 for each label.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from ...errors import TrituneError, shown
from ..table import listed, number_in, placed

SEPARATOR = "|"
LABEL_COLUMN = "label"

# With more classes than this, most of them seen once, a column holds numbers or ids and no classes.
_MANY_CLASSES = 20

Row = dict[str, Any]


def label_columns(label_column: str | None, present: Sequence[str], file: str) -> tuple[str, ...]:
    """The columns of the label: one, or several separated by commas, each for a label of its own.

    Raises TrituneError if one is missing or given twice.
    """
    wanted = label_column or LABEL_COLUMN
    columns = (wanted,) if wanted in present else tuple(column.strip() for column in wanted.split(","))
    if missing := [column for column in columns if column not in present]:
        advice = "" if label_column else "; say with --label-column which one holds the label"
        raise TrituneError(f"{file}: no column {listed(missing)}; there are {listed(present)}{advice}")
    if len(set(columns)) < len(columns):
        raise TrituneError(f"--label-column names a column twice: {listed(columns)}")
    return columns


def guessed_problem(rows: Sequence[Row], columns: Sequence[str], file: str) -> str:
    """The problem that a label column poses, by its values.

    Several columns, lists, and names separated by `|` are multi-label; numbers of which any has a fractional part are
    scores; words and whole numbers are classes.

    Raises TrituneError, naming the rows, if a label is missing, or some are words and some are numbers.
    """
    cells = [(where, row.get(columns[0])) for where, row in placed(rows, file)]
    if len(columns) > 1 or any(isinstance(cell, list) or SEPARATOR in _text(cell) for _, cell in cells):
        return "multi_label"
    first: dict[str, tuple[str, Any]] = {}
    for where, cell in cells:
        check_present(cell, where, columns[0])
        first.setdefault(_kind(cell), (where, cell))
    if len(first) > 1:
        (kind, (early, theirs)), (other, (late, cell)) = list(first.items())[:2]
        raise TrituneError(
            f"{late}: the label {columns[0]!r} is {other} ({shown(cell)}), in {early.rpartition(', ')[2]} it is {kind} "
            f"({shown(theirs)}); make them all one or the other, or give --problem"
        )
    if "a number" in first and any((number_in(cell) or 0.0) % 1 for _, cell in cells):
        return "regression"
    return "single_label"


def check_present(cell: Any, where: str, column: str) -> None:
    """Raise TrituneError if a cell of the label column holds nothing, or no finite number."""
    empty = cell is None or (isinstance(cell, str) and not cell.strip())
    if empty or not math.isfinite(number_in(cell) or 0.0):
        found = "empty" if empty else shown(cell)
        raise TrituneError(f"{where}: the label {column!r} is {found}; fill it in or drop the row")


def label_names(problem: str, rows: Sequence[Row], columns: Sequence[str], file: str) -> tuple[str, ...] | None:
    """The names of the labels in id order: sorted, whole numbers as numbers; None for scores.

    Raises TrituneError if a label cannot be read, all are the same, or nearly every row has one of its own.
    """
    if problem == "regression":
        scores = {score(row.get(columns[0]), where, columns[0]) for where, row in placed(rows, file)}
        if len(scores) == 1:
            raise TrituneError(f"{file}: every row has the label {scores.pop():g}; there is nothing to learn")
        return None
    if len(columns) > 1:
        return tuple(columns)
    names: Counter[str] = Counter()
    for where, row in placed(rows, file):
        names.update(_names_in(problem, row.get(columns[0]), where, columns[0]))
    if len(names) < 2:
        only = f"the only label is {listed(names)}" if names else "no row has a label"
        raise TrituneError(f"{file}: {only} (column {columns[0]!r}); at least two are needed")
    if len(names) > _MANY_CLASSES and 2 * len(names) > len(rows):
        raise TrituneError(
            f"{file}: {columns[0]!r} has {len(names)} different values in {len(rows)} rows, too many for classes; name "
            "another column with --label-column, or say --problem regression"
        )
    return tuple(in_order(names))


def in_order(names: Iterable[str]) -> list[str]:
    """Names sorted, whole numbers as numbers."""
    try:
        return sorted(names, key=int)
    except ValueError:
        return sorted(names)


def are_ids(problem: str, names: Sequence[str], rows: Sequence[Row], columns: Sequence[str], file: str) -> bool:
    """Whether a label column holds the ids of labels whose `names` are known: whole numbers, none of which is a name.

    Raises TrituneError if a label cannot be read.
    """
    if problem == "regression" or len(columns) > 1:
        return False
    cells = ((row.get(columns[0]), where) for where, row in placed(rows, file))
    found = {name for cell, where in cells for name in _names_in(problem, cell, where, columns[0])}
    return are_ids_of(found, names)


def are_ids_of(found: Collection[str], names: Sequence[str]) -> bool:
    """Whether labels that were found in a file are ids of those of these `names`, see `are_ids`.

    >>> are_ids_of({"1", "0"}, ["no", "yes"]), are_ids_of({"1", "0"}, ["1", "0"]), are_ids_of({"1", "yes"}, ["yes"])
    (True, False, False)
    """
    return bool(found) and set(found).isdisjoint(names) and all(_whole_number(name) is not None for name in found)


def id_of(name: str, names: Sequence[str], by_id: bool) -> int | None:
    """The id of a label as a file gives it: the place of its name or, with `by_id`, the whole number itself.

    None if it is neither.
    """
    if name in names:
        return names.index(name)
    number = _whole_number(name) if by_id else None
    return number if number in range(len(names)) else None


def advice_on(names: Sequence[str]) -> str:
    """What to do about a label that is not one of these names."""
    nameless = [name.upper() for name in names] == [f"LABEL_{index}" for index in range(len(names))]
    return "name those in id order with --labels" if nameless else "rename it or drop the row"


class LabelReader:
    """Reads the label of a row as the model takes it.

    `problem` is one of `names.PROBLEMS`, `names` are those of the labels in id order (None for scores), and `origin`
    says in messages where they come from. With `by_id`, whole numbers are ids. Raises TrituneError for several
    `columns` that are not one for each label.
    """

    def __init__(
        self, problem: str, names: Sequence[str] | None, columns: Sequence[str], origin: str, by_id: bool = False
    ):
        self.problem, self.columns, self.origin, self.by_id = problem, columns, origin, by_id
        self.names = tuple(names or ())
        if len(columns) > 1 and set(columns) != set(self.names):
            raise TrituneError(f"--label-column: {listed(columns)} are not {origin}: {listed(self.names)}")

    def __call__(self, row: Row, where: str) -> int | float | list[float]:
        """A class id, a score, or zeros and ones for every label.

        Raises TrituneError, beginning with `where`, if the label is missing, of another kind, or not one of the names.
        """
        column = self.columns[0]
        if self.problem == "regression":
            return score(row.get(column), where, column)
        if len(self.columns) > 1:
            given = [name for name in self.columns if _flag(row.get(name), where, name)]
        else:
            given = _names_in(self.problem, row.get(column), where, column)
        found = {name: id_of(name, self.names, self.by_id) for name in given}
        if unknown := [name for name, index in found.items() if index is None]:
            raise TrituneError(
                f"{where}: the label {shown(unknown[0])} is not one of {self.origin}: {listed(self.names)}; "
                f"{advice_on(self.names)}"
            )
        ids = {index for index in found.values() if index is not None}
        if self.problem == "single_label":
            return ids.pop()
        return [float(index in ids) for index in range(len(self.names))]


def score(cell: Any, where: str, column: str) -> float:
    """A finite number, or TrituneError."""
    check_present(cell, where, column)
    if (number := number_in(cell)) is None:
        raise TrituneError(f"{where}: the label {column!r} must be a number, found {shown(cell)}")
    return number


def _names_in(problem: str, cell: Any, where: str, column: str) -> list[str]:
    """The names of the labels in one cell: of many-label rows any number, else one."""
    if problem == "single_label":
        check_present(cell, where, column)
        return [name_of(cell, where, column)]
    if isinstance(cell, list):
        return [name_of(each, where, column) for each in cell]
    if not isinstance(cell, str):
        raise TrituneError(f"{where}: the labels {column!r} must be a list, or names separated by |; got {shown(cell)}")
    return [name.strip() for name in cell.split(SEPARATOR) if name.strip()]


def name_of(cell: Any, where: str, column: str) -> str:
    """The name of the label in a cell: words without the blanks around them, whole numbers as their digits.

    Raises TrituneError, beginning with `where`, for anything else.
    """
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, int | float) and math.isfinite(cell):
        return str(int(cell)) if cell == int(cell) else str(cell)
    if isinstance(cell, str) and cell.strip() and SEPARATOR not in cell:
        return cell.strip()
    raise TrituneError(f"{where}: the label {column!r} must be text or a number, without |; found {shown(cell)}")


def _whole_number(name: str) -> int | None:
    """The whole number that a name spells, also as 1.0, which pandas writes."""
    number = number_in(name)
    return int(number) if number is not None and math.isfinite(number) and number == int(number) else None


def _flag(cell: Any, where: str, column: str) -> bool:
    text = str(cell).strip().lower()
    if text not in ("1", "1.0", "true", "0", "0.0", "false"):
        raise TrituneError(f"{where}: the column {column!r} of a label must hold 0 or 1, found {shown(cell)}")
    return text in ("1", "1.0", "true")


def _kind(cell: Any) -> str:
    if isinstance(cell, bool):
        return "a truth value"
    if isinstance(cell, str | int | float):
        return "text" if number_in(cell) is None else "a number"
    return "neither text nor a number"


def _text(cell: Any) -> str:
    return cell if isinstance(cell, str) else ""
