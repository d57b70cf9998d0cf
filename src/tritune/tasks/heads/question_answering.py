"""Extractive question answering: which part of a text answers a question (SQuAD)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch.nn import functional as F
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import ModelOutput

from ...checkpoints.load import load_tokenizer
from ...errors import TrituneError
from ..span_metrics import answer_f1
from ..table import columns_of
from .answer_windows import Span, cut
from .head import Answering, EncodedData, Head, Predictable
from .squad_file import has_unanswerable, questions, read_squad
from .text import collator, text_columns, token_by_token


@dataclass(frozen=True)
class _Answers:
    """Scores the answers to the questions of one dev split."""

    spans: Callable[[np.ndarray], list[Span]]
    contexts: Sequence[str]
    gold: Sequence[Sequence[str]]
    measure: Callable[..., dict[str, float]]
    unanswerable: bool

    def __call__(self, logits: np.ndarray) -> dict[str, float]:
        """Metrics of start and end logits, (windows, tokens, 2)."""
        places = self.places(logits)
        return self.measure([text[slice(*one)] for text, one in zip(self.contexts, places, strict=True)], self.gold)

    def places(self, logits: np.ndarray) -> list[tuple[int, int]]:
        """Every answer's first character and the one after its last; both 0 for none."""
        return [
            (0, 0) if self.unanswerable and span.none_score > span.score else (span.start, span.end)
            for span in self.spans(logits)
        ]


class QuestionAnswering(Head):
    """A span of a context, from `AutoModelForQuestionAnswering`.

    Args:
        unanswerable: whether a question may have no answer, as in SQuAD 2.0.
    """

    name = "question-answering"
    auto_model = AutoModelForQuestionAnswering
    auto_processor = AutoTokenizer
    keeps_answers = False
    has_columns = False

    def __init__(self, unanswerable: bool = False):
        self.unanswerable = unanswerable

    def options(self, task: Any) -> dict[str, Any]:
        """Two numbers a token: that the answer starts there, and that it ends there."""
        return {"num_labels": task.num_labels}

    def check(self, config: PreTrainedConfig, task: Any, source: str | Path) -> None:
        """Raise TrituneError if the model does not give two numbers a token."""
        if config.num_labels != task.num_labels:
            raise TrituneError(f"{source}: {config.num_labels} labels; {self.name} needs 2, of start and end")

    def load_processor(
        self, source: str | Path, model: PreTrainedModel, max_length: int | None
    ) -> PreTrainedTokenizerBase:
        """The tokenizer, a fast one; see `load.load_tokenizer`."""
        return token_by_token(load_tokenizer(source, model, max_length), source)

    def folder_files(self, task: Any, folder: Path) -> dict[str, Path]:
        """`train.json` and `dev.json`."""
        return {"train": folder / "train.json", "validation": folder / "dev.json"}

    def describe(
        self, files: Mapping[str, Path], columns: Sequence[str] | None, label_column: str | None
    ) -> dict[str, Any]:
        """SQuAD's values; questions may have no answer if some are marked so."""
        if columns is not None or label_column is not None:
            raise TrituneError(f"{self.name}: files are SQuAD's JSON, which has no columns to choose from")
        return SQUAD | {"head": UNANSWERABLE if any(map(has_unanswerable, files.values())) else QUESTION_ANSWERING}

    def read_files(self, task: Any, splits: Sequence[str]) -> DatasetDict:
        """Questions with their contexts and answers, see `squad_file.read_squad`."""
        for split in splits:
            if split not in task.files or not Path(task.files[split]).is_file():
                raise TrituneError(f"{task.files.get(split, split)} is missing: {task.title} is read from SQuAD's JSON")
        return DatasetDict({split: read_squad(Path(task.files[split]), self.unanswerable) for split in splits})

    def from_hub(self, rows: Dataset, task: Any, source: str) -> Dataset:
        """The hub keeps an answer's texts and starts in two lists."""
        wanted = {"id", "question", "context", "answers"}
        if not wanted <= set(rows.column_names):
            raise TrituneError(f"{source} has the columns {rows.column_names}, expected {sorted(wanted)}")

        def raw(row: dict[str, Any]) -> dict[str, Any]:
            """A question as SQuAD's JSON has it."""
            pairs = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
            return row | {"answers": [{"text": text, "answer_start": start} for text, start in pairs]}

        return questions(map(raw, rows), source, self.unanswerable)

    def encode(
        self, splits: DatasetDict, task: Any, processor: PreTrainedTokenizerBase, max_length: int | None, padding: str
    ) -> EncodedData:
        """Windows of every question with `labels`, (first token, last token); see `answer_windows.cut`."""
        windows, measures = DatasetDict(), {}
        for split, rows in splits.items():
            windows[split], spans = cut(rows, processor, max_length, task.title)
            if split in task.dev_splits:
                measures[split] = _Answers(spans, rows["context"], rows["answers"], task.measure, self.unanswerable)
        return EncodedData(windows, collator(processor, padding, max_length), measures, task.dev_splits[0])

    def model_inputs(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`labels`, (batch, 2), as start and end positions."""
        if "labels" not in batch:
            return batch
        start, end = batch["labels"].unbind(-1)
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        return inputs | {"start_positions": start, "end_positions": end}

    def read(self, output: ModelOutput, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Start and end logits, (batch, tokens, 2)."""
        return torch.stack([output.start_logits, output.end_logits], dim=-1)

    def closeness(self, student: np.ndarray, teacher: np.ndarray, task: Any, data: EncodedData) -> dict[str, float]:
        """How close a student's logits, (windows, tokens, 2), are to its teacher's from a pass of its own.

        Returns:
            `agreement`, the share of questions with the same span for an answer, and `kl_to_teacher`, KL(teacher ||
            student) over the positions of a window, mean over windows and over start and end.
        """
        measure = data.measures[data.select]
        same = np.mean([one == other for one, other in zip(*map(measure.places, (student, teacher)), strict=True)])
        divergences = []
        for row, ids in enumerate(data.dev["input_ids"]):
            logs = [torch.from_numpy(of[row, : len(ids)]).double().log_softmax(0) for of in (student, teacher)]
            divergences.append(float(F.kl_div(*logs, reduction="sum", log_target=True)) / 2)
        return {"agreement": float(same), "kl_to_teacher": float(np.mean(divergences))}

    def inputs(self, rows: Sequence[dict[str, Any]], columns: Sequence[str] | None, name: str) -> dict[str, list[str]]:
        """Questions and contexts, of the columns `question` and `context` unless others are named."""
        columns = tuple(columns or ("question", "context"))
        if len(columns) != 2:
            raise TrituneError(f"--text-columns: {self.name} takes two, of the question and of its context")
        text_columns(columns_of(rows), columns, name)
        asked: dict[str, list[str]] = {"id": [], "question": [], "context": []}
        for number, row in enumerate(rows, 1):
            values = [row.get(column) for column in columns]
            for column, value in zip(columns, values, strict=True):
                if not isinstance(value, str) or not value.strip():
                    raise TrituneError(f"{name}, row {number}: {column!r} must be text; fill it in or drop the row")
            for key, value in zip(asked, (f"row {number}", *values), strict=True):
                asked[key].append(value)
        return asked

    def predictable(self, inputs: dict[str, list[str]], answering: Answering, name: str) -> Predictable:
        """Adds `answer`, its `score`, and `no_answer_score`.

        The scores are probabilities; the second one means something only in a model that was trained on questions
        without answers.
        """
        windows, spans = cut(Dataset.from_dict(inputs), answering.processor, answering.max_length, name)

        def answers(logits: np.ndarray) -> list[dict[str, Any]]:
            """One answer a row."""
            return [
                {
                    "answer": context[span.start : span.end],
                    "score": round(span.probability, 6),
                    "no_answer_score": round(span.none_probability, 6),
                }
                for context, span in zip(inputs["context"], spans(logits), strict=True)
            ]

        columns = ("answer", "score", "no_answer_score")
        return Predictable(windows, answering.collate(), columns, answers)


QUESTION_ANSWERING = QuestionAnswering()
UNANSWERABLE = QuestionAnswering(unanswerable=True)

SQUAD: dict[str, Any] = {
    "text_columns": ("question", "context"),
    "labels": ("start", "end"),
    "metric": "f1",
    "measure": answer_f1,
    "max_length": 384,
    "batch_size": 16,
    "eval_steps": 500,
}
"""The fields of a `registry.Task` that all such tasks share."""
