"""Lines of text without labels, for sentence encoders; and pairs of texts with scores, by which they may be scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ...errors import TrituneError, shown
from ...tasks.data.splitting import DEV, TEST, Example, halves
from ...tasks.heads.text import text_columns
from ...tasks.registry import Task, own_task
from ...tasks.table import listed, number_in, write_table
from ..forms import read_data
from ..reading import Reading, Remark, check_few
from ..request import Request
from ..table import FEWEST_ROWS, Table, lengths_line

_SCORES = ("score", "label", "similarity")
_TEXTS = (("sentence1", "sentence2"), ("text1", "text2"), ("text", "text_pair"))
_LINE, _PAIR, _SCORE = "text", ("sentence1", "sentence2"), "score"


@dataclass(frozen=True)
class Sentences(Table):
    """Texts without labels.

    Attributes:
        pairs: of texts with scores, by part; empty where there are none, and the dev and the test part are lines.
        pairs_file: their file.
    """

    pairs: dict[str, list[Example]]
    pairs_file: str

    task_kind = "feature-extraction"
    rows_are = "texts"
    teacher_is = "sentence encoder"
    takes_pairs = True

    @classmethod
    def fits(cls, reading: Reading) -> bool:
        """A single column."""
        return len(reading.columns) == 1 and all(
            isinstance(row.cells.get(reading.columns[0]), str) for row in reading.rows
        )

    @classmethod
    def may_be(cls, reading: Reading) -> bool:
        """Any table."""
        return True

    @classmethod
    def of(cls, reading: Reading, request: Request) -> "Sentences":
        """The texts of one column, or of several; those of `request.eval` are pairs."""
        columns = text_columns(reading.columns, request.text_columns, reading.file)
        remarks, examples = list(reading.remarks), []
        for row in reading.rows:
            cells = [row.cells.get(column) for column in columns]
            texts = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
            if not texts:
                remarks.append(Remark(row.line, False, f"no text in {listed(columns)}"))
            examples += [Example(row.line, (text,), None, row.cells) for text in texts]
        pairs: dict[str, list[Example]] = {}
        notes = list(reading.notes)
        if request.eval is not None:
            scored, more = _pairs(request)
            dev, test = halves(scored, request.seed)
            pairs, notes = {DEV: dev, TEST: test}, notes + more
        file = "" if request.eval is None else request.eval.name
        return cls(reading, examples, remarks, notes, None, pairs, file)

    def described(self) -> list[str]:
        """Lengths, and what the score is."""
        lengths = lengths_line((len(example.texts[0]) for example in self.examples), "characters")
        if not self.pairs:
            return [f"text: {lengths}", "score: the mean cosine between vectors of student and teacher (no --eval)"]
        count = sum(map(len, self.pairs.values()))
        return [
            f"text: {lengths}",
            f"score: Spearman's correlation on {count} pairs of {self.pairs_file}, {len(self.pairs[DEV])} of them dev, "
            f"{len(self.pairs[TEST])} test",
        ]

    def teacher(self, config: PreTrainedConfig) -> tuple[str, ...] | None:
        """Any model: there are no labels to fine-tune it on."""
        return ()

    @property
    def columns(self) -> dict[str, Any]:
        """The names in the parts."""
        return {"texts": list(_PAIR), "label": _SCORE} if self.pairs else {"texts": [_LINE]}

    @property
    def evaluated(self) -> dict[str, int]:
        """Two texts a pair."""
        return {side: 2 * len(rows) for side, rows in self.pairs.items()}

    def options(self, labels: tuple[str, ...] | None) -> dict[str, Any]:
        """None."""
        return {}

    def file(self, folder: Path, side: str) -> Path:
        """Where a part lies: of pairs, beside the lines."""
        return folder / f"pairs-{side}{self.ending}" if side in self.pairs else super().file(folder, side)

    def write(self, folder: Path, side: str, rows: Sequence[Example]) -> None:
        """Lines, and pairs where there are some."""
        write_table(super().file(folder, side), [{_LINE: row.texts[0]} for row in rows])
        if side in self.pairs:
            pairs = [dict(zip(_PAIR, row.texts, strict=True)) | {_SCORE: row.label} for row in self.pairs[side]]
            write_table(self.file(folder, side), pairs)

    def lines(self, folder: Path) -> Task | None:
        """The test part's lines, where pairs are scored."""
        return own_task(self.task_kind, {"validation": super().file(folder, TEST)}) if self.pairs else None

    def facts(self) -> dict[str, Any]:
        """The number of pairs, too."""
        return super().facts() | {"pairs": {side: len(rows) for side, rows in self.pairs.items()}}


def _pairs(request: Request) -> tuple[list[Example], list[str]]:
    """The pairs of a table with two texts and a score a row, and what is to be said of it, a line each."""
    assert request.eval is not None
    reading = read_data(request.eval, "text-classification")
    file, present = reading.file, reading.columns
    score = next((name for name in _SCORES if name in present), None)
    others = [name for name in present if name != score]
    columns = next((pair for pair in _TEXTS if set(pair) <= set(others)), tuple(others))
    if score is None or len(columns) != 2:
        raise TrituneError(
            f"{file}: pairs need two columns of text, such as sentence1 and sentence2, and one called score; there are "
            f"{listed(present)}"
        )
    remarks, examples = list(reading.remarks), []
    for row in reading.rows:
        cells, number = [row.cells.get(column) for column in columns], number_in(row.cells.get(score))
        texts = tuple(cell for cell in cells if isinstance(cell, str) and cell.strip())
        if len(texts) < 2:
            remarks.append(Remark(row.line, False, "a text is missing"))
        elif number is None or not abs(number) < float("inf"):
            remarks.append(Remark(row.line, False, f"the score is {shown(row.cells.get(score))}, no number"))
        else:
            examples.append(Example(row.line, texts, number, row.cells))
    check_few(remarks, len(examples), request.max_bad_rows, file)
    if len(examples) < FEWEST_ROWS:
        raise TrituneError(f"{file}: {len(examples)} pairs can be used; at least {FEWEST_ROWS} are needed")
    notes = [f"{file}: {note}" for note in reading.notes]
    if remarks:
        first = f"such as {remarks[0].place}: {remarks[0].reason}"
        notes.append(f"{file}: of {len(remarks) + len(examples)} rows, {len(remarks)} cannot be used, {first}")
    return examples, notes
