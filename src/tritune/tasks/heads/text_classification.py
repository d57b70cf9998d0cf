"""One label, many labels or a score for a text or a pair of texts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import List as ListFeature
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedTokenizerBase

from ...distil.losses import binary_kl_divergence
from ...errors import TrituneError, shown
from ..metrics import Measure, class_scores, mean_pearson_spearman, multi_label_scores
from ..names import check_problem
from ..table import columns_of, listed, placed, read_table
from .classifier import PROBLEM_TYPES, Classifier, measures_of, named_answers
from .encoded import Answering, EncodedData, Predictable
from .head import Task
from .labels import LabelReader, are_ids, guessed_problem, label_columns, label_names
from .long_texts import WINDOW, token_ids
from .text import check_room, collator, encode, text_columns, text_of, training_texts
from .text_windows import averaged, cut, first_windows

# How the rows of each problem are scored; the first metric selects where a task file does not say another one.
_METRICS: dict[str, tuple[Measure, tuple[str, ...]]] = {
    "single_label": (class_scores, ("accuracy", "macro_f1")),
    "multi_label": (multi_label_scores, ("micro_f1", "macro_f1", "subset_accuracy")),
    "regression": (mean_pearson_spearman, ("mean_pearson_spearman", "pearson", "spearman")),
}
# Scores that are no further apart are the same answer.
_SAME_SCORE = 1e-3
Columns = tuple[str, ...]


class TextClassification(Classifier):
    """Classes, many labels or a score, from `AutoModelForSequenceClassification`."""

    name = "text-classification"
    auto_model = AutoModelForSequenceClassification
    has_classes = True
    has_long_texts = True
    file_options: ClassVar[tuple[str, ...]] = ("problem", "labels", "metric")

    def encode(
        self, splits: DatasetDict, task: Task, processor: PreTrainedTokenizerBase, max_length: int | None, padding: str
    ) -> EncodedData:
        """Token ids of every text, see `text.encode`, or of its windows, see `text_windows.cut`."""
        options = task.text_columns, processor, max_length, task.title
        collate = collator(processor, padding, max_length)
        if task.long_texts != WINDOW:
            encoded = DatasetDict({split: encode(rows, *options, task.long_texts) for split, rows in splits.items()})
            return EncodedData(encoded, collate, measures_of(encoded, task), task.dev_splits[0])
        made = {split: cut(rows, *options) for split, rows in splits.items()}
        windows = DatasetDict({split: rows for split, (rows, _) in made.items()})
        texts = {split: of_text for split, (_, of_text) in made.items()}
        firsts = DatasetDict({split: windows[split].select(first_windows(texts[split])) for split in windows})
        measures = {
            split: partial(_of_windows, of_text=texts[split], measure=measure)
            for split, measure in measures_of(firsts, task).items()
        }
        return EncodedData(windows, collate, measures, task.dev_splits[0], texts=texts)

    def known(self, config: PreTrainedConfig) -> dict[str, Any]:
        """The problem and the labels of a fine-tuned model."""
        if config.num_labels == 1:
            return {"problem": "regression"}
        problem = next((problem for problem, name in PROBLEM_TYPES.items() if name == config.problem_type), None)
        return super().known(config) | ({"problem": problem} if problem else {})

    def describe(
        self,
        files: Mapping[str, Path],
        columns: Sequence[str] | None,
        label_column: str | None,
        problem: str | None = None,
        labels: Sequence[str] | None = None,
        metric: str | None = None,
    ) -> dict[str, Any]:
        """What a table of texts and labels asks, by its training file, or by its dev file where that is all there is.

        Args:
            files, columns, label_column: see `Head.describe`; several label columns have commas between.
            problem: one of `names.PROBLEMS`; None goes by the values of the label column.
            labels: the names in id order, as a model knows them; None takes those that occur.
            metric: that selects checkpoints; None takes the problem's first.

        Raises:
            TrituneError: the file, a column, a label or an option cannot be used.
        """
        check_problem(problem)
        path = files.get("train") or files["validation"]
        rows, targets, texts = _table(path, label_column, columns)
        file = str(path)
        if problem is None:
            problem = guessed_problem(rows, targets, file)
            problem = "single_label" if labels and problem == "regression" else problem
        if len(targets) > 1 and problem != "multi_label":
            raise TrituneError(f"--label-column: {listed(targets)} are several columns, and {problem} takes one")
        by_id = bool(labels) and are_ids(problem, labels or (), rows, targets, file)
        if problem == "regression" or not labels:
            labels = label_names(problem, rows, targets, file)
        measure, metrics = _METRICS[problem]
        if metric is not None and metric not in metrics:
            raise TrituneError(f"metric: {shown(metric)} is not one of the metrics of {problem}: {', '.join(metrics)}")
        return {
            "text_columns": texts,
            "label_column": ",".join(targets),
            "labels": labels and tuple(labels),
            "by_id": by_id,
            "multi_label": problem == "multi_label",
            "metric": metric or metrics[0],
            "measure": measure,
        }

    def read_files(self, task: Task, splits: Sequence[str]) -> DatasetDict:
        """The texts of every row, and as `label` a class id, a score, or zeros and ones for all labels."""
        return DatasetDict({split: _read(task, task.file(split)) for split in splits})

    def inputs(self, rows: Sequence[dict[str, Any]], columns: Sequence[str] | None, name: str) -> list[list[str]]:
        """The texts of one or two columns."""
        return [
            [text_of(row, column, where, may_be_empty=True) for where, row in placed(rows, name)]
            for column in text_columns(columns_of(rows), columns, name)
        ]

    def predictable(self, inputs: list[list[str]], answering: Answering, name: str) -> Predictable:
        """Adds `prediction`, see `classifier.named_answers`."""
        if answering.long_texts == WINDOW:
            return _in_windows(inputs, answering, name)
        check_room(answering.processor, len(inputs), answering.max_length)
        encoded = token_ids(answering.processor, inputs, answering.max_length, answering.long_texts, name)
        return named_answers(Dataset.from_dict(encoded), answering.collate(), answering.model, name)

    def closeness(self, student: np.ndarray, teacher: np.ndarray, task: Task, data: EncodedData) -> dict[str, float]:
        """As of classes; with many labels a row agrees where every label's answer is the same, and the KL is summed.

        Of windows the answers to their texts are compared.
        """
        student, teacher = (data.of_inputs(read, data.select) for read in (student, teacher))
        if task.problem != "multi_label":
            return super().closeness(student, teacher, task, data)
        divergence = binary_kl_divergence(torch.from_numpy(student).double(), torch.from_numpy(teacher).double())
        agreement = float(np.mean(_same_labels(student, teacher)))
        return {"agreement": agreement, "kl_to_teacher": float(divergence)}

    def scored(
        self, read: np.ndarray, teacher: np.ndarray, task: Task, data: EncodedData
    ) -> tuple[np.ndarray, np.ndarray, Measure]:
        """The logits of every text, and its label."""
        labels = np.asarray(data.dev["labels"])[first_windows(data.dev_inputs)]
        return data.of_inputs(read, data.select), labels, task.measure

    def same_answers(self, one: np.ndarray, other: np.ndarray, task: Task, data: EncodedData, split: str) -> np.ndarray:
        """As of classes; of many labels, whether all of a row are the same; of a score, whether it is to 1e-3."""
        one, other = (data.of_inputs(read, split) for read in (one, other))
        if task.problem == "regression":
            return (np.abs(one - other) <= _SAME_SCORE).all(-1)
        if task.problem == "multi_label":
            return _same_labels(one, other)
        return super().same_answers(one, other, task, data, split)


def _of_windows(
    read: np.ndarray, of_text: np.ndarray, measure: Callable[[np.ndarray], dict[str, float]]
) -> dict[str, float]:
    """The metrics of texts, from the logits of their windows."""
    return measure(averaged(read, of_text))


def _in_windows(inputs: list[list[str]], answering: Answering, name: str) -> Predictable:
    """Windows of texts; the answer to a text is that of the mean of its windows' logits."""
    rows = Dataset.from_dict({str(number): texts for number, texts in enumerate(inputs)})
    windows, of_text = cut(rows, rows.column_names, answering.processor, answering.max_length, name)
    asked = named_answers(windows, answering.collate(), answering.model, name)
    answers, shares = asked.answers, asked.shares
    return replace(
        asked,
        answers=lambda read: answers(averaged(read, of_text)),
        shares=shares and (lambda read: shares(averaged(read, of_text))),
    )


def _same_labels(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether all labels of a row are the same, from the logits of many labels, (rows, labels)."""
    return ((one > 0) == (other > 0)).all(-1)


def _table(path: Path, label_column: str | None, columns: Sequence[str] | None) -> tuple[list, Columns, Columns]:
    """The rows of a file, the columns of the label, and those of the texts."""
    rows = read_table(path)
    present = columns_of(rows)
    targets = label_columns(label_column, present, str(path))
    return rows, targets, text_columns([name for name in present if name not in targets], columns, str(path))


def _read(task: Task, path: Path) -> Dataset:
    rows, targets, _ = _table(path, task.label_column, task.text_columns)
    columns: dict[str, list] = {name: training_texts(rows, name, str(path)) for name in task.text_columns}
    train = (task.files or {}).get("train", path)
    origin = "the labels" if train == path else f"the labels in training ({train})"
    read = LabelReader(task.problem, task.labels, targets, origin, task.by_id)
    columns["label"] = [read(row, where) for where, row in placed(rows, str(path))]
    return Dataset.from_dict(columns, features=features(task))


def features(task: Task) -> Features:
    """The columns of a split: the texts, and `label` as ClassLabel, float32, or one float32 for each of many labels."""
    label = Value("float32") if task.labels is None else ClassLabel(names=list(task.labels))
    if task.multi_label:
        label = ListFeature(Value("float32"), length=task.num_labels)
    return Features({column: Value("string") for column in task.text_columns} | {"label": label})


TEXT_CLASSIFICATION = TextClassification()
