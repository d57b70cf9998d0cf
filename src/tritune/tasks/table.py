"""A user's own tables: rows from CSV, TSV, JSON, plain lines or Parquet, and the same formats (but Parquet) out again.

CSV has quotes; TSV has none, as in the GLUE files: rows are separated by line feeds, fields by tabs.
"""

import codecs
import csv
import io
import json
import os
import reprlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..checkpoints.files import replace_file
from ..errors import TrituneError, first_line

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl", ".txt": "text"}
PARQUET = ".parquet"
STDIN = "-"

# The csv module refuses fields over 128 kB by default; a document may be longer.
csv.field_size_limit(2**31 - 1)
_brief = reprlib.Repr()
_brief.maxlist, _brief.maxstring = 20, 60


def read_table(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a file by its ending; `-` is plain lines from standard input.

    A plain line is a row with the one column `text`, or `text` and `text_pair` where it holds a tab. JSON is one object
    a line, or a list of objects.

    Raises TrituneError, naming file and line, if the file is missing, of another kind, empty, not UTF-8, or a row does
    not fit.
    """
    name, ending = table_name(path), Path(path).suffix.lower()
    kind = "text" if str(path) == STDIN else FORMATS.get(ending)
    if kind is None and ending != PARQUET:
        known = ", ".join((*FORMATS, PARQUET))
        raise TrituneError(f"{path}: unknown kind of file; known are {known} and - for standard input")
    rows = list(_READERS[kind](read_text(path), name)) if kind else _read_parquet(Path(path))
    if not rows:
        raise TrituneError(f"{name}: holds no rows")
    return rows


def table_name(path: str | Path) -> str:
    """What messages call the file that `read_table` was given."""
    return "standard input" if str(path) == STDIN else str(path)


def columns_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The names of the columns that any row has, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def placed(rows: Iterable[dict[str, Any]], file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows, each with the name that a message gives its place."""
    return ((f"{file}, row {number}", row) for number, row in enumerate(rows, 1))


def number_in(cell: Any) -> float | None:
    """The number that a cell is or spells, NaN and infinities among them; None where there is none.

    >>> number_in(" 2.5"), number_in("two"), number_in(True)
    (2.5, None, None)
    """
    try:
        return None if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        return None


def listed(names: Iterable[str]) -> str:
    """Column names for a message, which stays one readable line whatever the file holds."""
    return _brief.repr(list(names))[1:-1]


def write_table(path: str | Path | None, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV, TSV or JSON lines by the file's ending, whole or not at all; None is CSV on standard output.

    Raises TrituneError as `check_writable` does, and if the file cannot be written.
    """
    if path is None:
        _write_stdout(rows)
        return
    kind = check_writable(path, rows)
    try:
        with replace_file(Path(path)) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            _WRITERS[kind](file, rows)
    except OSError as error:
        raise TrituneError(f"{path}: cannot be written ({error.strerror})") from None


def check_writable(path: str | Path, rows: Sequence[dict[str, Any]] = ()) -> str:
    """The kind of file that `path` will be, before anything is computed.

    Raises TrituneError if the ending is not that of a table, the folder does not exist or is read-only, the path is a
    folder, or such a file cannot hold a field of `rows`.
    """
    kind = FORMATS.get(Path(path).suffix.lower())
    if kind not in _WRITERS:
        raise TrituneError(f"{path}: predictions are written as .csv, .tsv or .jsonl")
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise TrituneError(f"{path}: there is no folder {folder}; create it first")
    if Path(path).is_dir():
        raise TrituneError(f"{path}: this is a folder; give the name of a file")
    if not os.access(folder, os.W_OK):
        raise TrituneError(f"{path}: {folder} is not writable; give a file in another folder")
    if kind == "tsv":
        for number, row in enumerate(rows, 1):
            if broken := [name for name, value in row.items() if {"\t", "\n"} & {*name, *_cell(value)}]:
                raise TrituneError(
                    f"{path}: {listed(broken)} of row {number} holds a tab or a line end, which .tsv cannot; "
                    "write .csv or .jsonl"
                )
    return kind


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, or of standard input, without a byte order mark.

    Raises TrituneError, naming file and line, if it cannot be read or is not UTF-8.
    """
    name = table_name(path)
    try:
        data = sys.stdin.buffer.read() if str(path) == STDIN else Path(path).read_bytes()
    except OSError as error:
        raise TrituneError(f"{name}: cannot be read ({error.strerror})") from None
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TrituneError(f"{name}, line {line}: not UTF-8 text; convert it, for example with iconv") from None


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; `splitlines` would also break at lone carriage returns and at other separators."""
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if line or number < len(lines):
            yield number, line.removesuffix("\r")


def _read_csv(text: str, name: str) -> Iterator[dict[str, str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        yield from _named(((reader.line_num, fields) for fields in reader), name, ",")
    except csv.Error as error:
        raise TrituneError(
            f"{name}, line {reader.line_num}: not CSV ({error}); a quote inside a quoted field is written twice"
        ) from None


def _read_tsv(text: str, name: str) -> Iterator[dict[str, str]]:
    return _named(((number, line.split("\t") if line else []) for number, line in numbered_lines(text)), name, "\t")


def _named(records: Iterable[tuple[int, list[str]]], name: str, delimiter: str) -> Iterator[dict[str, str]]:
    """Records that are not blank as dictionaries, by the header that comes first."""
    header: list[str] = []
    for number, fields in records:
        if not fields:
            continue
        if not header:
            header = fields
            check_names(header, f"{name}, line {number}", delimiter)
            continue
        if len(fields) != len(header):
            raise TrituneError(
                f"{name}, line {number}: {len(fields)} fields, the header has {len(header)}; repair or drop the row"
            )
        yield dict(zip(header, fields, strict=True))


def check_names(names: list[str], where: str, delimiter: str = "") -> None:
    """Raise TrituneError if a header has a name twice, or one name in which another delimiter occurs."""
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise TrituneError(f"{where}: the header has {listed(twice)} more than once; rename the columns")
    if delimiter and len(names) == 1 and any(other in names[0] for other in {",", ";", "\t"} - {delimiter}):
        raise TrituneError(f"{where}: one column {listed(names)}; the delimiter must be {delimiter!r}")


def _read_json(text: str, name: str) -> Iterator[dict[str, Any]]:
    """One object a line, or a list of objects."""
    if text.lstrip().startswith("["):
        what = "a JSON object"
        rows: Iterable[tuple[str, Any]] = placed(_parsed(text, name, "a JSON list of objects"), name)
    else:
        what = "a JSON object on one line"
        lines = ((number, line) for number, line in numbered_lines(text) if line.strip())
        rows = ((f"{name}, line {n}", _parsed(line, name, what, line_number=n)) for n, line in lines)
    for where, row in rows:
        if not isinstance(row, dict):
            raise TrituneError(f"{where}: not {what}")
        yield row


def _parsed(text: str, name: str, what: str, line_number: int | None = None) -> Any:
    """The value of a file's JSON, or of one line's."""
    where = name if line_number is None else f"{name}, line {line_number}"
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        raise TrituneError(f"{name}, line {line_number or error.lineno}: not {what} ({error.msg})") from None
    except UnicodeEncodeError:
        raise TrituneError(f"{where}: half of a surrogate pair (\\ud800 to \\udfff)") from None
    except (ValueError, RecursionError):
        raise TrituneError(f"{where}: not {what}") from None


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            names, rows = file.schema_arrow.names, file.read().to_pylist()
    except OSError as error:
        raise TrituneError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from None
    except (ArrowException, ValueError) as error:
        raise TrituneError(f"{path}: not Parquet ({first_line(error)})") from None
    check_names(names, str(path))
    return rows


def _read_lines(text: str, name: str) -> Iterator[dict[str, str]]:
    for number, line in numbered_lines(text):
        fields = line.split("\t")
        if len(fields) > 2:
            raise TrituneError(
                f"{name}, line {number}: {len(fields)} texts; a line holds one or two, separated by a tab"
            )
        yield dict(zip(("text", "text_pair"), fields, strict=False))


_READERS = {"csv": _read_csv, "tsv": _read_tsv, "jsonl": _read_json, "text": _read_lines}


def _cell(value: Any) -> str:
    """A field of CSV or TSV; what JSON lines hold beside texts stays JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def _table(rows: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    names = columns_of(rows)
    yield names
    for row in rows:
        yield [_cell(row.get(name)) for name in names]


def _write_csv(file: TextIO, rows: Sequence[dict[str, Any]]) -> None:
    record = io.StringIO(newline="")
    # The module quotes no line ends but its own: with a bare \n, a carriage return inside a text would break its row.
    writer = csv.writer(record, lineterminator="\r\n")
    for fields in _table(rows):
        writer.writerow(fields)
        file.write(record.getvalue().removesuffix("\r\n") + "\n")
        record.seek(0)
        record.truncate()


def _write_tsv(file: TextIO, rows: Sequence[dict[str, Any]]) -> None:
    file.writelines("\t".join(fields) + "\n" for fields in _table(rows))


def _write_json_lines(file: TextIO, rows: Sequence[dict[str, Any]]) -> None:
    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


_WRITERS = {"csv": _write_csv, "tsv": _write_tsv, "jsonl": _write_json_lines}


def _write_stdout(rows: Sequence[dict[str, Any]]) -> None:
    try:
        _write_csv(sys.stdout, rows)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough: no mistake
        raise
    except OSError as error:
        raise TrituneError(f"standard output: cannot be written ({error.strerror})") from None
    except UnicodeEncodeError:
        raise TrituneError(
            f"standard output: some text cannot be written as {sys.stdout.encoding}; give --output, or set PYTHONUTF8=1"
        ) from None
