"""Texts of one's own: rows from CSV, TSV, JSON lines or plain lines, and the same formats out again."""

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

from ..errors import TrituneError

FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl", ".txt": "text"}
STDIN = "-"

# The csv module refuses fields over 128 kB by default; a document may be longer.
csv.field_size_limit(2**31 - 1)


def read_table(path: str | Path) -> list[dict[str, str]]:
    """The rows of a file by its ending; `-` is plain lines from standard input.

    A plain line is a row with the one column `text`, or `text` and `text_pair` where it holds a tab.

    Raises:
        TrituneError: the file is missing, of another kind, empty, not UTF-8, or a row does not fit; the message names
            file and line.
    """
    kind = "text" if str(path) == STDIN else FORMATS.get(Path(path).suffix.lower())
    if kind is None:
        raise TrituneError(f"{path}: unknown kind of file; known are {', '.join(FORMATS)} and - for standard input")
    try:
        with nullcontext(sys.stdin) if str(path) == STDIN else open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(_READERS[kind](file, path))
    except UnicodeDecodeError:
        raise TrituneError(f"{path}: not UTF-8 text; convert it, for example with iconv") from None
    except OSError as error:
        raise TrituneError(f"{path}: cannot be read ({error.strerror})") from None
    if not rows:
        raise TrituneError(f"{path}: holds no rows")
    return rows


def write_table(path: str | Path | None, rows: Sequence[dict[str, object]]) -> None:
    """Write rows as CSV, TSV or JSON lines by the file's ending, whole or not at all; None is CSV on standard output.

    Raises:
        TrituneError: the ending is of another kind, or the file cannot be written.
    """
    if path is None:
        _write_csv(sys.stdout, rows, ",")
        return
    kind = check_writable(path)
    with _whole(Path(path)) as file:
        if kind == "jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            _write_csv(file, rows, "," if kind == "csv" else "\t")


def check_writable(path: str | Path) -> str:
    """The kind of file that `path` will be, before anything is computed.

    Raises:
        TrituneError: the ending is not of a table, or its folder does not exist.
    """
    kind = FORMATS.get(Path(path).suffix.lower())
    if kind not in ("csv", "tsv", "jsonl"):
        raise TrituneError(f"{path}: predictions are written as .csv, .tsv or .jsonl")
    if not Path(path).absolute().parent.is_dir():
        raise TrituneError(f"{path}: there is no folder {Path(path).absolute().parent}")
    return kind


def _read_delimited(file: Iterable[str], path: str | Path, delimiter: str, **options) -> Iterator[dict[str, str]]:
    reader = csv.DictReader(file, delimiter=delimiter, restkey=None, **options)
    for row in reader:
        if None in row or None in row.values():
            wanted = len(reader.fieldnames or ())
            raise TrituneError(f"{path}, line {reader.line_num}: the row does not have the header's {wanted} fields")
        yield row


def _read_csv(file: Iterable[str], path: str | Path) -> Iterator[dict[str, str]]:
    return _read_delimited(file, path, ",", strict=True)


def _read_tsv(file: Iterable[str], path: str | Path) -> Iterator[dict[str, str]]:
    return _read_delimited(file, path, "\t", quoting=csv.QUOTE_NONE)


def _read_json_lines(file: Iterable[str], path: str | Path) -> Iterator[dict[str, str]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise TrituneError(f"{path}, line {number}: not a JSON object on one line") from None
        if not isinstance(row, dict):
            raise TrituneError(f"{path}, line {number}: not a JSON object on one line")
        yield row


def _read_lines(file: Iterable[str], path: str | Path) -> Iterator[dict[str, str]]:
    for line in file:
        text, tab, pair = line.rstrip("\r\n").partition("\t")
        yield {"text": text, "text_pair": pair} if tab else {"text": text}


_READERS = {"csv": _read_csv, "tsv": _read_tsv, "jsonl": _read_json_lines, "text": _read_lines}


def _write_csv(file: TextIO, rows: Sequence[dict[str, object]], delimiter: str) -> None:
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


@contextmanager
def _whole(path: Path) -> Iterator[TextIO]:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            yield file
        os.replace(partial, path)
    except OSError as error:
        raise TrituneError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        partial.unlink(missing_ok=True)
