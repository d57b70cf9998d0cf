"""Reads tagged sentences: columns of words and tags as in CoNLL's files, JSON, or Parquet."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from ...errors import TrituneError, shown
from ..span_metrics import OUTSIDE, iob2
from ..table import placed, read_table, read_text
from .labels import advice_on, are_ids_of, id_of, in_order

FEATURES = Features({"tokens": List(Value("string")), "tags": List(Value("string"))})
# A file of one sentence longer than this has lost its blank lines.
_LONGEST_ONLY_SENTENCE = 200
_DOCUMENT = "-DOCSTART-"

Sentence = tuple[str, list[str], list[str]]


def read_tagged(
    path: Path, columns: Sequence[str] = ("tokens", "tags"), labels: Sequence[str] | None = None, by_id: bool = False
) -> Dataset:
    """The sentences of a file: `tokens` and `tags`, IOB1 turned into IOB2.

    Args:
        path: `.jsonl`, `.json` or `.parquet` with a list of words and a list of tags a row; any other ending is lines
            of word, tag and whatever stands between them, with a blank line between sentences.
        columns: that hold words and tags, where there are columns.
        labels: the tags that may occur, in id order; None for any.
        by_id: whether whole numbers in the file are ids of them.

    Raises:
        TrituneError: the file or a sentence cannot be used; the message names file and line, or row.
    """
    if not path.is_file():
        raise TrituneError(f"{path} is missing: give a file of tagged sentences")
    sentences = _table(path, columns) if is_table(path) else _lines(path)
    rows = []
    for where, tokens, tags in sentences:
        tags = [str(int(tag)) if _is_whole(tag) else tag for tag in tags] if isinstance(tags, list) else tags
        for what, values in (("words", tokens), ("tags", tags)):
            if not isinstance(values, list) or not values or not all(isinstance(one, str) and one for one in values):
                raise TrituneError(f"{where}: its {what} must be a list of texts, found {shown(values)}")
        if len(tokens) != len(tags):
            raise TrituneError(f"{where}: {len(tokens)} words and {len(tags)} tags; every word needs one")
        if by_id and labels is not None:
            ids = [id_of(tag, labels, by_id) for tag in tags]
            tags = [tag if place is None else labels[place] for tag, place in zip(tags, ids, strict=True)]
        tags = iob2(tags)
        if labels is not None and (unknown := [tag for tag in tags if tag not in labels]):
            advice = advice_on(labels)
            raise TrituneError(f"{where}: the tag {shown(unknown[0])} is not one of {', '.join(labels)}; {advice}")
        rows.append({"tokens": tokens, "tags": tags})
    if not rows:
        raise TrituneError(f"{path}: holds no sentences")
    return Dataset.from_list(rows, features=FEATURES)


def _is_whole(tag: Any) -> bool:
    """Whether a tag of a table is a number without a fraction, as data sets of the hub and pandas write ids."""
    return isinstance(tag, int | float) and not isinstance(tag, bool) and tag % 1 == 0


def is_table(path: Path) -> bool:
    """Whether words and tags stand in named columns of such a file."""
    return path.suffix.lower() in (".jsonl", ".json", ".parquet")


def labels_of(sentences: Dataset, source: Path) -> tuple[str, ...]:
    """The tags that occur, `O` first; of an entity that is tagged B or I, both. TrituneError if all are `O`."""
    tags = {tag for row in sentences["tags"] for tag in row}
    if tags == {OUTSIDE}:
        raise TrituneError(
            f"{source}: every tag is {OUTSIDE}, so there is nothing to learn; check the column of the tags"
        )
    if are_ids_of(tags, ()):
        return tuple(in_order(tags))
    kinds = {tag[2:] for tag in tags if tag[:2] in ("B-", "I-")}
    tags |= {f"{prefix}-{kind}" for kind in kinds for prefix in "BI"}
    by_kind = sorted(tags - {OUTSIDE}, key=lambda tag: (tag[2:], tag) if tag[1:2] == "-" else (tag, ""))
    return (*((OUTSIDE,) if OUTSIDE in tags else ()), *by_kind)


def _lines(path: Path) -> Iterator[Sentence]:
    """Words and tags line by line: the first column is the word, the last one the tag."""
    words: list[str] = []
    tags: list[str] = []
    first, sentences, width = 1, 0, 0
    for number, line in enumerate([*read_text(path).split("\n"), ""], 1):
        fields = [field.strip() for field in line.split("\t" if "\t" in line else None)]
        if not any(fields) or fields[0] == _DOCUMENT:
            if words:
                sentences += 1
                yield f"{path}, line {first}", words, tags
            words, tags, first = [], [], number + 1
            continue
        width = width or len(fields)
        if len(fields) < 2 or len(fields) != width:
            raise TrituneError(f"{path}, line {number}: {len(fields)} columns, expected {max(width, 2)}: word … tag")
        words.append(fields[0])
        tags.append(fields[-1])
        if sentences == 0 and len(words) > _LONGEST_ONLY_SENTENCE:
            raise TrituneError(f"{path}: no blank line in the first {number}; sentences are separated by one")


def _table(path: Path, columns: Sequence[str]) -> Iterator[Sentence]:
    for where, row in placed(read_table(path), str(path)):
        if any(column not in row for column in columns):
            raise TrituneError(f"{where}: needs the lists {' and '.join(columns)}, found {', '.join(map(shown, row))}")
        yield where, row[columns[0]], row[columns[1]]
