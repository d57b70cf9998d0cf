"""Questions whose answers stand in their contexts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ...checkpoints.files import replace_file
from ...errors import TrituneError
from ...tasks.data.splitting import Example
from ...tasks.heads.question_answering import UNANSWERABLE
from ...tasks.heads.squad_file import checked_question
from ...tasks.registry import Task
from ..reading import Reading, Remark
from ..request import Request
from ..table import Table, check_columns, lengths_line

_COLUMNS = ("question", "context", "answers")
_ANSWERED, _NOT = "answered", "not answered"


@dataclass(frozen=True)
class Questions(Table):
    """Questions, some of them perhaps without an answer."""

    task_kind = "question-answering"
    rows_are = "questions"
    teacher_is = "model that answers questions"
    ending = ".json"
    longest = 384

    @classmethod
    def fits(cls, reading: Reading) -> bool:
        """Columns as SQuAD's."""
        return set(_COLUMNS) <= set(reading.columns)

    @classmethod
    def of(cls, reading: Reading, request: Request) -> "Questions":
        """The questions whose answers stand where they are said to stand.

        A question without an answer is one that has none if the file says so of any, or is a table as the hub's are.
        """
        check_columns(reading, _COLUMNS)
        marked = "is_impossible" in reading.columns
        impossible = not marked or any(bool(row.cells.get("is_impossible")) for row in reading.rows)
        remarks, examples, known = list(reading.remarks), [], set()
        for number, row in enumerate(reading.rows, 1):
            raw = row.cells | {"id": str(row.cells.get("id") or number), "answers": _pairs(row.cells.get("answers"))}
            try:
                checked = checked_question(raw, "", impossible)
            except TrituneError as error:
                remarks.append(Remark(row.line, False, str(error).removeprefix(": ")))
                continue
            if raw["id"] in known:
                remarks.append(Remark(row.line, False, "this id occurs twice"))
                continue
            known.add(raw["id"])
            label = _ANSWERED if checked["answers"] else _NOT
            examples.append(Example(row.line, (checked["context"],), label, row.cells | checked))
        return cls(reading, examples, remarks, list(reading.notes), None)

    @property
    def unanswered(self) -> int:
        """How many questions have no answer."""
        return sum(example.label == _NOT for example in self.examples)

    def described(self) -> list[str]:
        """Lengths, and how many questions have no answer."""
        contexts = lengths_line((len(example.texts[0]) for example in self.examples), "characters")
        count = len({example.texts for example in self.examples})
        none = f", {self.unanswered} of them without an answer" if self.unanswered else ""
        return [f"{len(self.examples)} questions about {count} contexts{none}; contexts: {contexts}"]

    def teacher(self, config: PreTrainedConfig) -> tuple[str, ...] | None:
        """Any model with two numbers a token."""
        fits = any("QuestionAnswering" in name for name in config.architectures or ()) and config.num_labels == 2
        return () if fits else None

    @property
    def columns(self) -> dict[str, Any]:
        """None: SQuAD's files have no columns."""
        return {}

    def options(self, labels: tuple[str, ...] | None) -> dict[str, Any]:
        """None."""
        return {}

    def task(self, folder: Path, labels: tuple[str, ...] | None, test: bool = False) -> Task:
        """As of any kind; a part may be without the questions that have no answer."""
        task = super().task(folder, labels, test)
        return replace(task, head=UNANSWERABLE) if self.unanswered else task

    def write(self, folder: Path, side: str, rows: Sequence[Example]) -> None:
        """As SQuAD's JSON, a paragraph a question."""
        paragraphs = [{"context": row.cells["context"], "qas": [_asked(row.cells)]} for row in rows]
        with replace_file(self.file(folder, side)) as partial:
            content = {"version": "2.0", "data": [{"title": side, "paragraphs": paragraphs}]}
            partial.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    def facts(self) -> dict[str, Any]:
        """The number of questions without an answer."""
        return super().facts() | {"unanswered": self.unanswered}


def _asked(cells: dict[str, Any]) -> dict[str, Any]:
    pairs = zip(cells["answers"], cells["starts"], strict=True)
    answers = [{"text": text, "answer_start": start} for text, start in pairs]
    return {"id": cells["id"], "question": cells["question"], "answers": answers, "is_impossible": not answers}


def _pairs(answers: Any) -> Any:
    """Answers as SQuAD's JSON has them: the hub keeps texts and starts in two lists."""
    if not (isinstance(answers, dict) and {"text", "answer_start"} <= answers.keys()):
        return answers
    lists = [answers[key] if isinstance(answers[key], list) else [answers[key]] for key in ("text", "answer_start")]
    return [{"text": text, "answer_start": start} for text, start in zip(*lists, strict=False)]
