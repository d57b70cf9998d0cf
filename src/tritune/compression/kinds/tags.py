"""Sentences with a tag a word."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ...engine.answers import OUTSIDE, label_names
from ...errors import TrituneError, shown
from ...tasks.data.splitting import Example
from ...tasks.heads.tag_files import labels_of
from ...tasks.span_metrics import iob2
from ...tasks.table import listed, write_table
from ..reading import Reading, Remark
from ..request import Request
from ..table import Table, classes_line, counted, lengths_line

WORDS, TAGS = "tokens", "tags"
_WORDS = (WORDS, "words")
_TAGS = (TAGS, "ner_tags", "labels", "pos_tags")


@dataclass(frozen=True)
class Tags(Table):
    """Tagged sentences."""

    task_kind = "token-classification"
    rows_are = "sentences"
    teacher_is = "tagger with these tags"

    @classmethod
    def fits(cls, reading: Reading) -> bool:
        """Two columns of lists."""
        words, tags = _columns(reading, None, None)
        return bool(words and tags) and any(isinstance(row.cells.get(words), list) for row in reading.rows)

    @classmethod
    def may_be(cls, reading: Reading) -> bool:
        """Any table: columns may be named."""
        return True

    @classmethod
    def of(cls, reading: Reading, request: Request) -> "Tags":
        """The sentences whose words have a tag each."""
        words, tags = _columns(reading, request.text_columns, request.label_column)
        for name, what in ((words, "words"), (tags, "tags")):
            if name not in reading.columns:
                raise TrituneError(
                    f"{reading.file}: no column {repr(name) if name else f'of {what}'}; name those of words and tags "
                    f"with --text-columns and --label-column, there are {listed(reading.columns)}"
                )
        remarks, examples = list(reading.remarks), []
        for row in reading.rows:
            told: tuple[Any, Any] = row.cells.get(words), row.cells.get(tags)
            if reason := _wrong(*told):
                remarks.append(Remark(row.line, False, reason))
                continue
            cells = row.cells | {WORDS: told[0], TAGS: iob2(told[1])}
            kinds = tuple(sorted({*cells[TAGS]} - {OUTSIDE}))
            examples.append(Example(row.line, (" ".join(cells[WORDS]),), kinds, cells))
        remarks.sort(key=lambda remark: remark.line)
        labels = None
        if examples:
            known = labels_of({TAGS: [example.cells[TAGS] for example in examples]}, Path(reading.file))
            labels = counted((tag for example in examples for tag in example.cells[TAGS]), known)
        return cls(reading, examples, remarks, list(reading.notes), labels)

    def described(self) -> list[str]:
        """Lengths and tags."""
        lengths = lengths_line((len(example.cells[WORDS]) for example in self.examples), "words")
        return [f"sentences: {lengths}", f"tags: {classes_line(self.labels or {}, 'tags')}"]

    def teacher(self, config: PreTrainedConfig) -> tuple[str, ...] | None:
        """A tagger that knows all tags of the file, and perhaps others."""
        if not any("TokenClassification" in name for name in config.architectures or ()):
            return None
        names = label_names(config.id2label)
        return names if set(self.labels or ()) <= set(names) else None

    @property
    def columns(self) -> dict[str, Any]:
        """The names in the parts."""
        return {"texts": [WORDS], "label": TAGS}

    def write(self, folder: Path, side: str, rows: Sequence[Example]) -> None:
        """As JSON lines."""
        write_table(self.file(folder, side), [{name: row.cells[name] for name in (WORDS, TAGS)} for row in rows])


def _columns(reading: Reading, words: Sequence[str] | None, tags: str | None) -> tuple[str, str]:
    """The columns of words and tags: those named, or usual ones that are there."""
    if words is not None and len(words) != 1:
        raise TrituneError(f"--text-columns: one column holds the words, got {listed(words)}")
    usual = [next((name for name in known if name in reading.columns), "") for known in (_WORDS, _TAGS)]
    return (words[0] if words else usual[0]), (tags or usual[1])


def _wrong(words: Any, tags: Any) -> str:
    """Why a sentence cannot be used; "" if it can."""
    for what, values in (("words", words), ("tags", tags)):
        if not isinstance(values, list) or not values or not all(isinstance(one, str) and one for one in values):
            return f"its {what} must be a list of texts, found {shown(values)}"
    return "" if len(words) == len(tags) else f"{len(words)} words and {len(tags)} tags; every word needs one"
