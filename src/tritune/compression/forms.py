"""The forms in which data comes, all read into rows: tables, lines, tagged words, SQuAD, folders of images, the hub."""

import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Image, List

from ..checkpoints.hub import load_dataset
from ..errors import TrituneError, first_line
from ..tasks.heads.images import LABEL, class_folders, image_files, read_parquet
from ..tasks.heads.squad_file import raw_questions
from ..tasks.table import FORMATS, PARQUET, check_names, columns_of, listed
from .reading import EXCEL, Reading, Remark, Row, by_place, decoded, lines_of, read_bytes, read_messy, without_unnamed
from .request import on_hub

_TAGGED = (".conll", ".iob", ".iob2", ".bio", ".bioes")
_TAGS = "token-classification"
# Folders of an image folder that are no classes.
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
# The share of lines that must look like a word and its tag.
_MOSTLY = 0.95
_TAG = re.compile(r"O|[BIESLU]-\S+")
_DOCUMENT = "-DOCSTART-"


def read_data(source: str | Path, task: str | None = None) -> Reading:
    """Read data of any form into rows.

    Args:
        source: a file, a folder of images with one folder a class, or the name of a data set on the hub.
        task: the kind of task that it is for, which tells apart what looks alike; None if nobody said.

    Raises:
        TrituneError: it cannot be read.
    """
    path = Path(source)
    if not path.exists() and on_hub(source):
        return _hub(str(source))
    if path.is_dir():
        return _folder(path)
    ending = path.suffix.lower()
    if ending == PARQUET and path.is_file():
        return of_dataset(read_parquet(path), path.name)
    if ending in EXCEL and path.is_file():
        return _excel(path)
    if ending == ".json" and path.is_file() and _is_squad(path):
        return _questions(path)
    if ending in _TAGGED or ending == ".txt" or (task == _TAGS and ending not in (*FORMATS, PARQUET)):
        return _plain(path, task, tagged=ending in _TAGGED or ending != ".txt")
    if ending in (".tsv", ".csv") and (task == _TAGS or (task is None and path.is_file() and _are_sentences(path))):
        return _plain(path, task, tagged=True)
    reading = read_messy(path)
    first = reading.rows[0].cells if reading.rows else {}
    if ending == ".json" and len(reading.rows) == 1 and any(isinstance(cell, list | dict) for cell in first.values()):
        raise TrituneError(
            f"{path}: holds a single object with {listed(first)}; write a list of objects, one a row, as pandas does "
            "with to_json(orient='records')"
        )
    return reading


def of_dataset(rows: Dataset, name: str, notes: Sequence[str] = ()) -> Reading:
    """The rows of a data set: classes by their names, images as they are stored."""
    check_names(rows.column_names, name)
    for column, feature in rows.features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(column, Image(decode=False))
    named = {column: _names(feature) for column, feature in rows.features.items()}
    read = []
    for number, cells in enumerate(rows, 1):
        by_name = {column: _by_name(cell, named[column]) for column, cell in cells.items()}
        read.append(Row(number, by_name))
    return Reading(name, list(rows.column_names), read, [], notes=list(notes))


def _names(feature: Any) -> list[str] | None:
    """The names of a column's classes."""
    inner = feature.feature if isinstance(feature, List) else feature
    return inner.names if isinstance(inner, ClassLabel) else None


def _by_name(cell: Any, names: list[str] | None) -> Any:
    if names is None or cell is None:
        return cell
    if isinstance(cell, list):
        return [_by_name(one, names) for one in cell]
    return names[cell] if cell >= 0 else None  # the hub's test splits have -1 for a label


def _hub(name: str) -> Reading:
    try:
        loaded = load_dataset(name)
    except Exception as error:  # the network, the cache and the hub's client each fail with types of their own
        raise TrituneError(
            f"{name}: no such file or folder, and no data set of the hub that can be loaded ({first_line(error)})"
        ) from None
    split = "train" if "train" in loaded else next(iter(loaded))
    others = [one for one in loaded if one != split]
    notes = [f"the rows are those of its split {split!r}; {listed(others)} are not used"] if others else []
    return of_dataset(loaded[split], name, notes)


def _folder(folder: Path) -> Reading:
    """The images of a folder: a class is a folder in it."""
    classes = class_folders(folder)
    if not classes:
        raise TrituneError(f"{folder}: a folder holds images, with one folder a class, and this has no folder")
    if {name.lower() for name in classes} <= _SPLITS:
        raise TrituneError(
            f"{folder}: {listed(classes)} are parts, not classes; give the folder of one, it is divided here"
        )
    rows = [
        Row(path.relative_to(folder).as_posix(), {"image": {"bytes": None, "path": str(path)}, LABEL: name})
        for name in classes
        for path in image_files(folder / name)
    ]
    return Reading(folder.name, ["image", LABEL], rows, [])


def _excel(path: Path) -> Reading:
    """The first sheet of a workbook; its first row names the columns."""
    if importlib.util.find_spec("openpyxl") is None:
        raise TrituneError(f"{path}: reading Excel's files needs openpyxl: pip install openpyxl")
    import pandas

    try:
        with pandas.ExcelFile(path, engine="openpyxl") as book:
            sheets = book.sheet_names
            cells = pandas.read_excel(book, sheets[0], header=None, dtype=object, na_values=[], keep_default_na=False)
    except Exception as error:  # of a damaged file, pandas, openpyxl and zipfile say so in types of their own
        raise TrituneError(f"{path}: not an Excel file that can be read ({first_line(error)})") from None
    table = [[None if cell is None or cell == "" or cell != cell else cell for cell in row] for row in cells.values]
    start = next((number for number, row in enumerate(table) if any(cell is not None for cell in row)), None)
    if start is None or start + 1 == len(table):
        raise TrituneError(f"{path}: its sheet {sheets[0]!r} holds no rows below a header")
    given = ["" if cell is None else str(cell).strip() for cell in table[start]]
    names = by_place(given)
    check_names(names, f"{path}, row {start + 1}")
    rows, remarks = [], []
    for number, row in enumerate(table[start + 1 :], start + 2):
        if all(cell is None for cell in row):
            remarks.append(Remark(number, False, "blank"))
        else:
            rows.append(Row(number, dict(zip(names, row, strict=True))))
    names, rows, notes = without_unnamed(given, rows)
    if len(sheets) > 1:
        notes.append(f"the rows are those of the sheet {sheets[0]!r}, the first of {len(sheets)}")
    return Reading(path.name, names, rows, remarks, notes=notes)


def _is_squad(path: Path) -> bool:
    try:
        content = json.loads(decoded(read_bytes(path), path.name)[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and isinstance(content.get("data"), list)


def _questions(path: Path) -> Reading:
    rows = [Row(f"question {raw.get('id')!r}", raw) for raw in raw_questions(path)]
    if not rows:
        raise TrituneError(f"{path}: holds no questions")
    return Reading(path.name, columns_of([row.cells for row in rows]), rows, [])


def _plain(path: Path, task: str | None, tagged: bool) -> Reading:
    """Lines: texts, or words with their tags."""
    if not path.is_file():
        raise TrituneError(f"{path}: there is no such file")
    text, encoding, notes = decoded(read_bytes(path), path.name)
    lines = lines_of(text)
    if not any(line.strip() for line in lines):
        raise TrituneError(f"{path}: holds no rows")
    if tagged or task == _TAGS or (task is None and _look_tagged(lines)):
        rows, remarks = _sentences(lines)
        return Reading(path.name, ["tokens", "tags"], rows, remarks, encoding, notes=notes)
    rows = [Row(number, {"text": line}) for number, line in enumerate(lines, 1) if line.strip()]
    if blank := len(lines) - len(rows):
        notes.append(f"{blank} blank lines are left out")
    return Reading(path.name, ["text"], rows, [], encoding, notes=notes)


def _look_tagged(lines: list[str]) -> bool:
    """Whether lines are words with tags: the same number of fields in each, the last one a tag such as B-PER or O."""
    fields = [_fields(line) for line in lines if line.strip() and not line.startswith(_DOCUMENT)]
    width = Counter(map(len, fields)).most_common(1)[0][0] if fields else 0
    fit = [row for row in fields if len(row) == width and _TAG.fullmatch(row[-1])]
    return width > 1 and len(fit) >= _MOSTLY * len(fields)


def _are_sentences(path: Path) -> bool:
    """Whether a table without a header holds words with their tags, and blank lines between sentences."""
    lines = lines_of(decoded(read_bytes(path), path.name)[0])
    return not all(line.strip() for line in lines) and _look_tagged(lines)


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.split("\t" if "\t" in line else None)]


def _sentences(lines: list[str]) -> tuple[list[Row], list[Remark]]:
    """Sentences with blank lines between: the first field of a line is the word, the last one its tag."""
    width = Counter(len(_fields(line)) for line in lines if line.strip()).most_common(1)[0][0]
    rows, remarks = [], []
    for sentence in _blocks(lines):
        start, fields = sentence[0][0], [fields for _, fields in sentence]
        wrong = next((number for number, one in sentence if len(one) != width or len(one) < 2), None)
        if wrong is None:
            cells = {"tokens": [one[0] for one in fields], "tags": [one[-1] for one in fields]}
            rows.append(Row(start, cells))
        else:
            count = len(dict(sentence)[wrong])
            remarks.append(Remark(wrong, False, f"{count} columns, expected {max(width, 2)}: word … tag"))
    return rows, remarks


def _blocks(lines: list[str]) -> Iterator[list[tuple[int, list[str]]]]:
    """The numbered lines between blank ones, in fields."""
    block: list[tuple[int, list[str]]] = []
    for number, line in enumerate([*lines, ""], 1):
        fields = _fields(line)
        if any(fields) and fields[0] != _DOCUMENT:
            block.append((number, fields))
        elif block:
            yield block
            block = []
