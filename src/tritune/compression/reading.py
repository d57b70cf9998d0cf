"""Tables as people have them: encoding and delimiter are found out, unusable rows are set aside and named."""

import codecs
import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import TrituneError
from ..tasks.data.splitting import Place, placed_at
from ..tasks.table import FORMATS, PARQUET, check_names, columns_of, number_in, read_table

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
# Names of columns that nobody would write into a cell.
USUAL_NAMES = ("text", "label", "labels", "sentence", "sentence1", "premise", "question1", "text_pair")
_TEXT_TABLES = (".csv", ".tsv")
EXCEL = (".xlsx", ".xlsm")
# Longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# A quoted field does not go on for more lines than this: where it seems to, its quote is a mistake.
_LONGEST_RECORD = 1000
_SAMPLE = 200
# What Excel is told its delimiter by, in the first line.
_NAMED_DELIMITER = re.compile(r"sep=([,;\t|])", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """One row of a file: its place, and its cells by column."""

    line: Place
    cells: dict[str, Any]


@dataclass(frozen=True)
class Remark:
    """Something about a row that a reader of the file should know; `kept` says whether the row is used."""

    line: Place
    kept: bool
    reason: str

    @property
    def place(self) -> str:
        """Where the row stands, for messages."""
        return placed_at(self.line)


@dataclass(frozen=True)
class Reading:
    """A file that was read.

    Attributes:
        file: its name, for messages.
        columns: in the file's order, without the index that pandas writes.
        rows: those that can be used.
        remarks: on rows that cannot, in order of lines.
        encoding, delimiter: what the file was taken for; None where its format leaves no choice.
        notes: what was guessed, a line each.
    """

    file: str
    columns: list[str]
    rows: list[Row]
    remarks: list[Remark]
    encoding: str | None = None
    delimiter: str | None = None
    notes: list[str] = field(default_factory=list)


def read_messy(path: Path, header: bool | None = None) -> Reading:
    """Read a table; what is wrong with single rows does not stop it.

    Args:
        path: .csv or .tsv in any common encoding, or anything that `read_table` reads.
        header: whether the first row names the columns; None finds out.

    Raises:
        TrituneError: the file is missing, of another kind, or has no rows.
    """
    ending = path.suffix.lower()
    if not path.is_file():
        raise TrituneError(f"{path}: there is no such file")
    if ending not in _TEXT_TABLES:
        if ending not in (*FORMATS, PARQUET):
            known = (*_TEXT_TABLES, *EXCEL, *(one for one in FORMATS if one not in _TEXT_TABLES), PARQUET)
            raise TrituneError(f"{path}: unknown kind of file; known are {', '.join(known)}")
        cells = read_table(path)
        return Reading(path.name, columns_of(cells), [Row(*pair) for pair in enumerate(cells, 1)], [])
    text, encoding, notes = decoded(read_bytes(path), path.name)
    lines = lines_of(text)
    if lines and (named := _NAMED_DELIMITER.fullmatch(lines[0])):
        lines[0] = ""  # lines keep their numbers
    if not any(line.strip() for line in lines):
        raise TrituneError(f"{path}: holds no rows")
    delimiter, quoted = (named[1], True) if named else delimited(lines)
    given, first, found = _header(lines, delimiter, quoted, header, str(path))
    names = by_place(given)
    check_names(names, f"{path}, line {first}")
    rows, remarks = _rows(lines, first, names, delimiter, quoted)
    if not (rows or remarks):
        raise TrituneError(f"{path}: holds a header and no rows")
    columns, rows, index = without_unnamed(given, rows)
    return Reading(path.name, columns, rows, remarks, encoding, DELIMITERS[delimiter], [*notes, *found, *index])


def decoded(data: bytes, name: str) -> tuple[str, str, list[str]]:
    """The text of a file, its encoding, and a note where that is a guess.

    Raises TrituneError for bytes that are no text.

    >>> decoded("über".encode("latin-1"), "a.csv")[:2]
    ('über', 'windows-1252')
    """
    marked = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)
    guesses = [marked] if marked else ["utf-8", "windows-1252", "latin-1"]
    if not marked and b"\0" in data[:1000]:
        # Of ASCII letters in UTF-16 every second byte is 0; a few zeros are stray ones.
        evens, odds = data[:1000:2].count(0), data[1:1000:2].count(0)
        is_wide = max(evens, odds) > len(data[:1000]) // 8
        guesses = ["utf-8"] if not is_wide else ["utf-16-be" if evens > odds else "utf-16-le"]
    for encoding in guesses:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        sure = marked or encoding == "utf-8"
        notes = [] if sure else [f"not UTF-8: read as {encoding}; if letters look wrong, save it as UTF-8"]
        return text, encoding.removesuffix("-sig"), notes
    raise TrituneError(f"{name}: not a text file, or a damaged one; save it as UTF-8")


def delimited(lines: list[str]) -> tuple[str, bool]:
    r"""The delimiter of a table's lines, and whether its fields may be quoted.

    >>> delimited(["a;b", "1,5;x", "2,5;y"]), delimited(["a\tb", '"x\t1', 'y"\t2'])
    ((';', True), ('\t', False))
    """
    best, score = (",", True), (-1.0, 0)
    for delimiter in DELIMITERS:
        # Tabs are often written without quoting, as in the GLUE files.
        for quoted in (True, False) if delimiter == "\t" else (True,):
            sample = islice(_records(lines, 0, delimiter, quoted), _SAMPLE)
            widths = [0 if _swallowed(fields, delimiter) else len(fields) for _, fields, _ in sample]
            width, count = Counter(widths).most_common(1)[0]
            fits = (count / len(widths) if width > 1 else 0.0, width if width > 1 else 0)
            # The share of rows that agree decides, then the number of columns; then what is tried first.
            if fits > score:
                best, score = (delimiter, quoted), fits
    return best


def _swallowed(fields: list[str], delimiter: str) -> bool:
    """Whether a field holds a line end and a tab, as where a stray quote swallowed the rows up to the next one."""
    return delimiter == "\t" and any("\n" in field and delimiter in field for field in fields)


def read_bytes(path: Path) -> bytes:
    """The content of a file; TrituneError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrituneError(f"{path}: cannot be read ({error.strerror})") from None


def lines_of(text: str) -> list[str]:
    """Lines without their ends; a carriage return ends a line only in files that have no line feed."""
    lines = [line.removesuffix("\r") for line in text.split("\n")] if "\n" in text else text.split("\r")
    return lines[:-1] if lines[-1] == "" else lines


def _records(lines: list[str], start: int, delimiter: str, quoted: bool) -> Iterator[tuple[int, list[str], str]]:
    """Line number, fields and, for a record that is broken, what is wrong with it.

    A record that cannot be read ends with its first line, so that a stray quote costs one row.
    """
    place = start
    while place < len(lines):
        record = (f"{lines[at]}\n" for at in range(place, min(place + _LONGEST_RECORD, len(lines))))
        if quoted:
            reader = csv.reader(record, delimiter=delimiter, strict=True)
        else:
            reader = csv.reader(record, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
        try:
            fields = next(reader)
            yield place + 1, fields, ""
            place += reader.line_num
        except csv.Error as error:
            yield place + 1, [], f"a quote is not closed, or stands inside a field ({error})"
            place += 1


def _header(
    lines: list[str], delimiter: str, quoted: bool, wanted: bool | None, file: str
) -> tuple[list[str], int, list[str]]:
    """The names of the columns, the line of the header (0 for none), and a note where there is none."""
    sample = [(line, fields) for line, fields, _ in islice(_records(lines, 0, delimiter, quoted), _SAMPLE) if fields]
    if not sample:
        raise TrituneError(f"{file}, line 1: {next(_records(lines, 0, delimiter, quoted))[2]}")
    line, names = sample[0]
    if wanted is None:
        wanted = not _looks_like_data(names, [fields for _, fields in sample[1:]])
    if wanted:
        return [name.strip() for name in names], line, []
    made = [f"column{number}" for number in range(1, len(names) + 1)]
    return made, 0, [f"no header (line {line} looks like a row): the columns are called {', '.join(made)}"]


def _looks_like_data(first: list[str], others: list[list[str]]) -> bool:
    """Whether the first record is a row: a number stands in it, or a value that its column has again and again."""
    names = first[1:] if first[0] == "" else first
    # pandas calls columns 0, 1, … where nobody named them.
    if any(cell.strip().lower() in USUAL_NAMES for cell in first) or names == [
        str(i) for i in range(max(2, len(names)))
    ]:
        return False
    if len({*first}) < len(first) or any(number_in(cell) is not None for cell in first):
        return True
    columns = zip(*(fields for fields in others if len(fields) == len(first)), strict=True)
    return any(cell and column.count(cell) > 1 for cell, column in zip(first, columns, strict=False))


def _rows(
    lines: list[str], start: int, names: list[str], delimiter: str, quoted: bool
) -> tuple[list[Row], list[Remark]]:
    rows, remarks = [], []
    for line, fields, wrong in _records(lines, start, delimiter, quoted):
        # Fields beyond the header may be empty, as where every line ends with a delimiter.
        if any(fields) and (len(fields) < len(names) or any(fields[len(names) :])):
            wrong = f"{len(fields)} fields, the header has {len(names)}"
        if wrong:
            remarks.append(Remark(line, False, wrong))
        elif not any(cell.strip() for cell in fields):
            remarks.append(Remark(line, False, "blank"))
        else:
            rows.append(Row(line, dict(zip(names, fields, strict=False))))
    return rows, remarks


def by_place(names: Sequence[str]) -> list[str]:
    """Names of columns, of those without one by their place.

    >>> by_place(["", "text", ""])
    ['column1', 'text', 'column3']
    """
    return [name or f"column{place}" for place, name in enumerate(names, 1)]


def without_unnamed(given: Sequence[str], rows: list[Row]) -> tuple[list[str], list[Row], list[str]]:
    """A table without columns that nobody named if they are empty, or only count the rows, as pandas writes them.

    Args:
        given: the header; columns without a name are called in `rows` as `by_place` does.
        rows: of the table.

    Returns:
        The names of the columns that are left, the rows, and what is to be said of others, a line each.
    """
    names, dropped, notes = by_place(given), set(), []
    for place, (was, name) in enumerate(zip(given, names, strict=True)):
        cells = [str(cell) for row in rows if (cell := row.cells.get(name)) is not None and str(cell).strip()]
        may_count = place == 0 and len(names) > 1 and (not was or was.startswith("Unnamed: 0"))
        if may_count and cells and all(_counts(cell) for cell in cells):
            dropped.add(name)
            notes.append("the first column, without a name, is an index and is not used")
        elif not was and not cells:
            dropped.add(name)
        elif not was:
            notes.append(f"a column without a name is called {name}")
    if not dropped:
        return names, rows, notes
    left = [Row(row.line, {name: cell for name, cell in row.cells.items() if name not in dropped}) for row in rows]
    return [name for name in names if name not in dropped], left, notes


def _counts(cell: str) -> bool:
    number = number_in(cell)
    return number is not None and number % 1 == 0


def check_few(remarks: Iterable[Remark], rows: int, most: float | None, file: str) -> None:
    """Check that not too many rows of a file had to be set aside.

    Args:
        remarks: on its rows.
        rows: how many can be used.
        most: that may be lost; None for 1 % and at least one.
        file: its name, for the message.

    Raises:
        TrituneError: more were; the message names the first lines and reasons.
    """
    lost = [remark for remark in remarks if not remark.kept]
    allowed = max(1, (rows + len(lost)) // 100) if most is None else most
    if len(lost) > allowed:
        first = "; ".join(f"{remark.place}: {remark.reason}" for remark in lost[:3])
        raise TrituneError(
            f"{file}: {len(lost)} of {rows + len(lost)} rows cannot be used, more than --max-bad-rows ({allowed}): "
            f"{first}{'; …' if len(lost) > 3 else ''}"
        )
