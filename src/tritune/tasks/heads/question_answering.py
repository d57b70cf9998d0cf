"""Extractive question answering: which part of a text answers a question (SQuAD)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch.nn import functional as F
from transformers import AutoModelForQuestionAnswering, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import ModelOutput

from ...engine.spans import Span
from ...errors import TrituneError
from ..span_metrics import answer_f1, answer_means, answer_scores
from ..table import columns_of, placed
from .answer_windows import cut
from .answering import Answering, Predictable
from .head import Batch, EncodedData, Head, Measure, Task
from .squad_file import has_unanswerable, questions, read_squad
from .text import collator, text_columns, text_of, token_by_token


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
        return self.measure(self.texts(logits), self.gold)

    def texts(self, logits: np.ndarray) -> list[str]:
        """Every answer, empty for none."""
        return [text[slice(*one)] for text, one in zip(self.contexts, self.places(logits), strict=True)]

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
    keeps_answers = False
    output_names = ("start_logits", "end_logits")
    windows = True
    asked = ("question", "context")
    unit = "questions"
    has_columns = False

    def __init__(self, unanswerable: bool = False):
        self.unanswerable = unanswerable

    def options(self, task: Task) -> dict[str, Any]:
        """Two numbers a token: that the answer starts there, and that it ends there."""
        return {"num_labels": task.num_labels}

    def check(self, config: PreTrainedConfig, task: Task, source: str | Path) -> None:
        """Raise TrituneError if the model does not give two numbers a token."""
        if config.num_labels != task.num_labels:
            raise TrituneError(f"{source}: {config.num_labels} labels; {self.name} needs 2, for start and end")

    def load_processor(
        self, source: str | Path, model: PreTrainedModel, max_length: int | None
    ) -> PreTrainedTokenizerBase:
        """The tokenizer, which must be a fast one."""
        return token_by_token(super().load_processor(source, model, max_length), source)

    def folder_files(self, task: Task, folder: Path) -> dict[str, Path]:
        """`train.json` and `dev.json`."""
        return {"train": folder / "train.json", "validation": folder / "dev.json"}

    def describe(
        self, files: Mapping[str, Path], columns: Sequence[str] | None, label_column: str | None
    ) -> dict[str, Any]:
        """SQuAD's values; questions may have no answer if some are marked so."""
        if columns is not None or label_column is not None:
            raise TrituneError(f"{self.name}: files are SQuAD's JSON, which has no columns to choose from")
        return SQUAD | {"head": UNANSWERABLE if any(map(has_unanswerable, files.values())) else QUESTION_ANSWERING}

    def read_files(self, task: Task, splits: Sequence[str]) -> DatasetDict:
        """Questions with their contexts and answers, see `squad_file.read_squad`."""
        for split in splits:
            if not task.file(split).is_file():
                raise TrituneError(f"{task.file(split)} is missing: {task.title} is read from SQuAD's JSON")
        return DatasetDict({split: read_squad(task.file(split), self.unanswerable) for split in splits})

    def kinship(self, rows: Dataset, task: Task) -> tuple[list[tuple[str, ...]], list[str | float]]:
        """The context: what was asked about it once is easier the next time."""
        return [(context,) for context in rows["context"]], [""] * len(rows)

    def from_hub(self, rows: Dataset, task: Task, source: str) -> Dataset:
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
        self, splits: DatasetDict, task: Task, processor: PreTrainedTokenizerBase, max_length: int | None, padding: str
    ) -> EncodedData:
        """Windows of every question with `labels`, (first token, last token); see `answer_windows.cut`."""
        windows, measures = DatasetDict(), {}
        for split, rows in splits.items():
            windows[split], spans = cut(rows, processor, max_length, task.title)
            if split in task.scored_splits:
                measures[split] = _Answers(spans, rows["context"], rows["answers"], task.measure, self.unanswerable)
        return EncodedData(windows, collator(processor, padding, max_length), measures, task.dev_splits[0])

    def model_inputs(self, batch: Batch) -> Batch:
        """`labels`, (batch, 2), as start and end positions."""
        if "labels" not in batch:
            return batch
        start, end = batch["labels"].unbind(-1)
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        return inputs | {"start_positions": start, "end_positions": end}

    def read(self, output: ModelOutput, batch: Batch) -> torch.Tensor:
        """Start and end logits, (batch, tokens, 2)."""
        return torch.stack(self.outputs(output, batch), dim=-1)

    def closeness(self, student: np.ndarray, teacher: np.ndarray, task: Task, data: EncodedData) -> dict[str, float]:
        """As of classes, of logits (windows, tokens, 2).

        `agreement` is the share of questions with the same span for an answer, `kl_to_teacher` KL(teacher || student)
        over the positions of a window, mean over windows and over start and end.
        """
        same = np.mean(self.same_answers(student, teacher, task, data, data.select))
        divergences = []
        for row, ids in enumerate(data.dev["input_ids"]):
            ours, theirs = (torch.from_numpy(of[row, : len(ids)]).double().log_softmax(0) for of in (student, teacher))
            divergences.append(float(F.kl_div(ours, theirs, reduction="sum", log_target=True)) / 2)
        return {"agreement": float(same), "kl_to_teacher": float(np.mean(divergences))}

    def scored(
        self, read: np.ndarray, teacher: np.ndarray, task: Task, data: EncodedData
    ) -> tuple[np.ndarray, np.ndarray, Measure]:
        """The scores of every question, see `span_metrics.answer_scores`, which hold the references as well."""
        measure = data.measures[data.select]
        assert isinstance(measure, _Answers)  # `encode` put it there
        scores = answer_scores(measure.texts(read), measure.gold)
        return scores, np.zeros(len(scores)), lambda some, _: answer_means(some)

    def without_padding(self, read: np.ndarray, rows: Dataset) -> np.ndarray:
        """Start and end logits of all tokens, (tokens, 2), of those of all windows, (windows, tokens, 2)."""
        return np.concatenate([of[: len(ids)] for of, ids in zip(read, rows["input_ids"], strict=True)])

    def same_answers(self, one: np.ndarray, other: np.ndarray, task: Task, data: EncodedData, split: str) -> np.ndarray:
        """Whether the answers to a question are the same span."""
        measure = data.measures[split]
        assert isinstance(measure, _Answers)  # `encode` put it there
        return np.asarray([first == second for first, second in zip(*map(measure.places, (one, other)), strict=True)])

    def inputs(self, rows: Sequence[dict[str, Any]], columns: Sequence[str] | None, name: str) -> dict[str, list[str]]:
        """Questions and contexts, of the columns `question` and `context` unless others are named."""
        columns = tuple(columns or ("question", "context"))
        if len(columns) != 2:
            raise TrituneError(f"--text-columns: {self.name} takes two columns, the question and its context")
        text_columns(columns_of(rows), columns, name)
        asked, contexts = ([text_of(row, column, where) for where, row in placed(rows, name)] for column in columns)
        return {"id": [f"row {row + 1}" for row in range(len(rows))], "question": asked, "context": contexts}

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

        return Predictable(windows, answering.collate(), ("answer", "score", "no_answer_score"), answers)


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
