"""A table in three parts: what a model learns from, what selects it (dev), and what it is finally scored on (test).

Rows with the same text but for case, punctuation and spaces stay on one side, and so do groups. Where time is given,
the newest rows are the test part. The same seed gives the same parts.
"""

import math
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...errors import TrituneError
from ..table import listed, number_in

TRAIN, DEV, TEST = "train", "dev", "test"
SHARES = {TEST: 0.2, DEV: 0.1}
_MOST = {TEST: 5000, DEV: 2000}
# A date with its day or its month in front.
_DATE = re.compile(r"\s*(\d{1,2})([./-])(\d{1,2})[./-]\d{2,4}")
# Scores are stratified by as many ranges of equal size.
_RANGES = 5
# Where a row stands: its line, counted from 1 (of JSON and Parquet its row), or a name.
Place = int | str
# A class (str), a score (float), several classes (a tuple), or None.
Label = Any


@dataclass(frozen=True)
class Example:
    """A row that can be used.

    Attributes:
        line: its place in the file.
        texts: what it is told apart by: rows whose texts are equal but for case and punctuation stay in one part.
        label: a class, a score, several classes, or nothing; every part gets its share of each.
        cells: by column.
    """

    line: Place
    texts: tuple[str, ...]
    label: Label
    cells: dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """The rows of each part, and the lines of rows that are in none."""

    rows: dict[str, list[Example]]
    left_out: list[Place]


def split(
    examples: Sequence[Example],
    seed: int,
    group: str | None = None,
    time: str | None = None,
    shares: Mapping[str, float] = SHARES,
) -> Parts:
    """Divide examples into train, dev and test, or into train and those parts that `shares` names.

    Args:
        examples: at least ten.
        seed: of the order in which rows are drawn.
        group: a column whose equal values stay on one side.
        time: a column by which the newest rows are the test part, and those before them the dev part. Rows whose text
            or group is in an earlier part are left out of the later ones.
        shares: of all rows, for every part but train; a part never has more than a few thousand. Not by time.

    Raises:
        TrituneError: a column is missing or has no readable time, or there are too few groups.
    """
    for option, column in (("--group", group), ("--time", time)):
        if column is not None and not any(column in example.cells for example in examples):
            raise TrituneError(f"{option}: no column {column!r}; there are {listed(examples[0].cells)}")
    families = _families(examples, group)
    if time is not None:
        return _by_time(examples, families, time, group)
    members: dict[int, list[int]] = defaultdict(list)
    for index, family in enumerate(families):
        members[family].append(index)
    strata: dict[Hashable, list[list[int]]] = defaultdict(list)
    classes = _classes(examples)
    for rows in members.values():
        strata[Counter(classes[row] for row in rows).most_common(1)[0][0]].append(rows)
    shuffle = random.Random(seed)
    sides = [TRAIN] * len(examples)
    for stratum in sorted(strata, key=str):
        for side, rows in _drawn(strata[stratum], len(examples), shuffle, shares):
            for row in rows:
                sides[row] = side
    parts = {
        side: [e for e, of in zip(examples, sides, strict=True) if of == side]
        for side in (TRAIN, DEV, TEST)
        if side in (TRAIN, *shares)
    }
    return Parts(_checked(parts, group), [])


def halves(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Two parts of about the same size, duplicates on one side."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, family in enumerate(_families(examples, None)):
        members[family].append(index)
    families = list(members.values())
    random.Random(seed).shuffle(families)
    sides: tuple[list[int], list[int]] = [], []
    for rows in families:
        min(sides, key=len).extend(rows)
    first, second = ([examples[row] for row in sorted(side)] for side in sides)
    return first, second


def placed_at(place: Place) -> str:
    """What messages call a place.

    >>> placed_at(3), placed_at("cats/1.png")
    ('line 3', 'cats/1.png')
    """
    return f"line {place}" if isinstance(place, int) else place


def normalized(text: str) -> str:
    """A text without case, punctuation and repeated spaces: texts that are equal then count as duplicates.

    >>> normalized("  It's  LATE! ")
    'it s late'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(" " if unicodedata.category(letter)[0] in "PZC" else letter for letter in folded)
    return " ".join(kept.split()) or text


def _families(examples: Sequence[Example], group: str | None) -> list[int]:
    """For every example the number of its family: rows that duplicates and groups tie together."""
    parent = list(range(len(examples)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first: dict[Hashable, int] = {}
    for index, example in enumerate(examples):
        keys: list[Hashable] = [("text", *map(normalized, example.texts))]
        cell = None if group is None else example.cells.get(group)
        value = "" if cell is None else str(cell).strip()
        if value:
            keys.append(("group", value))
        for key in keys:
            parent[root(index)] = root(first.setdefault(key, index))
    return [root(index) for index in range(len(examples))]


def _classes(examples: Sequence[Example]) -> list[Hashable]:
    """What is stratified by: the class, the rarest of several, or the range that a score is in."""
    labels = [example.label for example in examples]
    if any(isinstance(label, float) for label in labels):
        edges = np.quantile(np.array(labels, dtype=float), np.linspace(0, 1, _RANGES + 1)[1:-1])
        return np.searchsorted(edges, np.array(labels, dtype=float)).tolist()
    counts = Counter(name for label in labels if isinstance(label, tuple) for name in label)
    return [
        min(label, key=lambda name: (counts[name], name), default=None) if isinstance(label, tuple) else label
        for label in labels
    ]


def _drawn(
    families: list[list[int]], total: int, shuffle: random.Random, shares: Mapping[str, float]
) -> list[tuple[str, list[int]]]:
    """The families of one stratum that leave the training part: its share of rows, and at least one for either side.

    A single family stays in training; of two, one goes to the first of the other parts.
    """
    left = sorted(families)
    shuffle.shuffle(left)
    rows = sum(map(len, families))
    drawn = []
    for side, share in shares.items():
        wanted, taken = rows * min(share, _MOST[side] / total), 0
        for family in list(left):
            if len(left) > 1 and taken + len(family) / 2 <= wanted:
                left.remove(family)
                drawn.append((side, family))
                taken += len(family)
        if not taken and len(left) > 1:
            left.sort(key=len, reverse=True)  # where one has to go, the smallest does least harm to the shares
            drawn.append((side, left.pop()))
    return drawn


def _checked(parts: dict[str, list[Example]], group: str | None) -> dict[str, list[Example]]:
    if empty := [side for side, rows in parts.items() if not rows]:
        what = f"too few groups in {group!r}, which equal texts tie together" if group else "too few that differ"
        raise TrituneError(f"no rows are left for the {empty[0]} part: {what}; at least {len(parts)} are needed")
    return parts


def _by_time(examples: Sequence[Example], families: Sequence[int], column: str, group: str | None) -> Parts:
    order = sorted(range(len(examples)), key=_times(examples, column).__getitem__)
    counts = {side: max(1, round(len(order) * min(SHARES[side], _MOST[side] / len(order)))) for side in (TEST, DEV)}
    cuts = len(order) - counts[TEST] - counts[DEV], len(order) - counts[TEST]
    sides = {TRAIN: order[: cuts[0]], DEV: order[cuts[0] : cuts[1]], TEST: order[cuts[1] :]}
    home: dict[int, str] = {}
    for side, rows in sides.items():
        for row in rows:
            home.setdefault(families[row], side)
    kept = {side: [examples[row] for row in rows if home[families[row]] == side] for side, rows in sides.items()}
    left_out = [examples[row].line for side, rows in sides.items() for row in rows if home[families[row]] != side]
    if empty := [side for side, rows in kept.items() if not rows]:
        what = "group" if group else "text"
        raise TrituneError(f"no rows are left for the {empty[0]} part: the {what} of each is in an earlier part, too")
    return Parts(kept, sorted(left_out))


def _day_first(cells: Sequence[Any], column: str) -> bool:
    """Whether dates such as 05.02.2024 begin with their day, which nothing but the other dates tells.

    >>> _day_first(["05/02/2024", "25/02/2024"], "when"), _day_first(["05/02/2024", "02/25/2024"], "when")
    (True, False)
    """
    found = [_DATE.match(cell) for cell in cells if isinstance(cell, str)]
    pairs = [(int(date[1]), int(date[3])) for date in found if date]
    day_first, month_first = (any(pair[place] > 12 for pair in pairs) for place in (0, 1))
    day_first |= any(date[2] == "." for date in found if date)  # nobody writes the month first there
    if pairs and day_first == month_first:
        why = "some begin with the day, others with the month" if day_first else "it may be the day or the month first"
        raise TrituneError(
            f"--time: dates of {column!r} such as {next(filter(None, found))[0]}: {why}; write 2024-12-31"
        )
    return day_first


def _times(examples: Sequence[Example], column: str) -> list[Any]:
    import pandas

    cells = [example.cells.get(column) for example in examples]
    numbers = [number_in(cell) for cell in cells]
    if all(number is not None and not math.isnan(number) for number in numbers):
        return numbers
    read = partial(pandas.to_datetime, errors="coerce", format="mixed", utc=True)
    times = read(pandas.Series(cells, dtype=object))
    if _day_first(cells, column):  # of those alone: pandas would turn 2024-03-01 round, too
        turned = [place for place, cell in enumerate(cells) if isinstance(cell, str) and _DATE.match(cell)]
        times[turned] = read(pandas.Series([cells[place] for place in turned], index=turned), dayfirst=True)
    for example, time in zip(examples, times, strict=True):
        if pandas.isna(time):
            found = example.cells.get(column)
            raise TrituneError(
                f"{placed_at(example.line)}: {column!r} is no time: {found!r}; write it as 2024-12-31 18:00"
            )
    return times.tolist()
