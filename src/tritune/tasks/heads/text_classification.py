"""One label, many labels or a score for a text or a pair of texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import List as ListFeature
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...checkpoints.load import load_tokenizer
from ...distil.losses import binary_kl_divergence
from ...errors import TrituneError, shown
from ..metrics import Measure, class_scores, mean_pearson_spearman, multi_label_scores
from ..names import check_problem
from ..table import columns_of, listed, read_table
from .classifier import PROBLEM_TYPES, Classifier, measures_of, named_answers
from .head import Answering, EncodedData, Predictable
from .labels import LabelReader, guessed_problem, label_columns, label_names, placed
from .text import check_room, collator, encode, text_columns, text_of, training_texts

# How the rows of each problem are scored; the first metric selects where a task file does not say another one.
_METRICS: dict[str, tuple[Measure, tuple[str, ...]]] = {
    "single_label": (class_scores, ("accuracy", "macro_f1")),
    "multi_label": (multi_label_scores, ("micro_f1", "macro_f1", "subset_accuracy")),
    "regression": (mean_pearson_spearman, ("mean_pearson_spearman", "pearson", "spearman")),
}


class TextClassification(Classifier):
    """Classes, many labels or a score, from `AutoModelForSequenceClassification`."""

    name = "text-classification"
    auto_model = AutoModelForSequenceClassification
    auto_processor = AutoTokenizer
    file_options: ClassVar[tuple[str, ...]] = ("problem", "labels", "metric")

    def load_processor(
        self, source: str | Path, model: PreTrainedModel, max_length: int | None
    ) -> PreTrainedTokenizerBase:
        """The tokenizer, see `load.load_tokenizer`."""
        return load_tokenizer(source, model, max_length)

    def encode(
        self, splits: DatasetDict, task: Any, processor: PreTrainedTokenizerBase, max_length: int | None, padding: str
    ) -> EncodedData:
        """Token ids of every text, see `text.encode`."""
        encoded = DatasetDict({name: encode(rows, task, processor, max_length) for name, rows in splits.items()})
        collate = collator(processor, padding, max_length)
        return EncodedData(encoded, collate, measures_of(encoded, task), task.dev_splits[0])

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
            problem: one of `task_names.PROBLEMS`; None goes by the values of the label column.
            labels: the names in id order, as a model knows them; None takes those that occur.
            metric: that selects checkpoints; None takes the problem's first.

        Raises:
            TrituneError: the file, a column, a label or an option cannot be used.
        """
        check_problem(problem)
        path = files.get("train") or files["validation"]
        rows, file = read_table(path), str(path)
        present = columns_of(rows)
        targets = label_columns(label_column, present, file)
        texts = text_columns([name for name in present if name not in targets], columns, file)
        if problem is None:
            problem = guessed_problem(rows, targets, file)
            problem = "single_label" if labels and problem == "regression" else problem
        if len(targets) > 1 and problem != "multi_label":
            raise TrituneError(f"--label-column: {listed(targets)} are several columns, and {problem} takes one")
        if problem == "regression":
            labels = None
        if not labels:
            labels = label_names(problem, rows, targets, file)
        measure, metrics = _METRICS[problem]
        if metric is not None and metric not in metrics:
            raise TrituneError(f"metric: {shown(metric)} is none of {problem}'s: {', '.join(metrics)}")
        return {
            "text_columns": texts,
            "label_column": ",".join(targets),
            "labels": labels and tuple(labels),
            "multi_label": problem == "multi_label",
            "metric": metric or metrics[0],
            "measure": measure,
            "max_length": 128,
            "batch_size": 32,
            "eval_steps": 100,
        }

    def read_files(self, task: Any, splits: Sequence[str]) -> DatasetDict:
        """The texts of every row, and as `label` a class id, a score, or zeros and ones for all labels."""
        return DatasetDict({split: self._read(task, task.files[split]) for split in splits})

    def _read(self, task: Any, path: Path) -> Dataset:
        rows, file = read_table(path), str(path)
        present = columns_of(rows)
        targets = label_columns(task.label_column, present, file)
        text_columns([name for name in present if name not in targets], task.text_columns, file)
        columns: dict[str, list] = {name: training_texts(rows, name, file) for name in task.text_columns}
        read = LabelReader(task.problem, task.labels, targets, _origin(task, path))
        columns["label"] = [read(row, where) for where, row in placed(rows, file)]
        return Dataset.from_dict(columns, features=_features(task))

    def inputs(self, rows: Sequence[dict[str, Any]], columns: Sequence[str] | None, name: str) -> list[list[str]]:
        """The texts of one or two columns."""
        return [
            [text_of(row, column, f"{name}, row {number}") for number, row in enumerate(rows, 1)]
            for column in text_columns(columns_of(rows), columns, name)
        ]

    def predictable(self, inputs: list[list[str]], answering: Answering, name: str) -> Predictable:
        """Adds `prediction`, see `classifier.named_answers`."""
        check_room(answering.processor, len(inputs), answering.max_length)
        encoded = answering.processor(*inputs, truncation=True, max_length=answering.max_length)
        examples = [{key: values[row] for key, values in encoded.items()} for row in range(len(inputs[0]))]
        return named_answers(examples, answering.collate(), answering.model, name)

    def closeness(self, student: np.ndarray, teacher: np.ndarray, task: Any, data: EncodedData) -> dict[str, float]:
        """As of classes; with many labels a row agrees where every label's answer is the same, and the KL is summed."""
        if task.problem != "multi_label":
            return super().closeness(student, teacher, task, data)
        divergence = binary_kl_divergence(torch.from_numpy(student).double(), torch.from_numpy(teacher).double())
        agreement = float(np.mean(((student > 0) == (teacher > 0)).all(-1)))
        return {"agreement": agreement, "kl_to_teacher": float(divergence)}


def _origin(task: Any, path: Path) -> str:
    train = task.files.get("train")
    return "the labels" if train is None or train == path else f"the labels in training ({train})"


def _features(task: Any) -> Features:
    label = {
        "single_label": lambda: ClassLabel(names=list(task.labels)),
        "multi_label": lambda: ListFeature(Value("float32"), length=task.num_labels),
        "regression": lambda: Value("float32"),
    }[task.problem]()
    return Features({column: Value("string") for column in task.text_columns} | {"label": label})


TEXT_CLASSIFICATION = TextClassification()
