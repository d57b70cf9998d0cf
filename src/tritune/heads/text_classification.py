"""One label or one score for a text or a pair of texts."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..errors import TrituneError
from ..load import load_tokenizer
from .head import EncodedData, Head
from .text import collator, encode


class TextClassification(Head):
    """Classes or a score (GLUE), from `AutoModelForSequenceClassification`."""

    name = "text-classification"
    auto_model = AutoModelForSequenceClassification
    auto_processor = AutoTokenizer

    def options(self, task: Any) -> dict[str, Any]:
        """The number of labels, their names and the loss that goes with them."""
        if task.is_regression:
            return {"num_labels": 1, "problem_type": self.problem_type(task)}
        return {
            "num_labels": task.num_labels,
            "problem_type": self.problem_type(task),
            "id2label": dict(enumerate(task.labels)),
            "label2id": {label: index for index, label in enumerate(task.labels)},
        }

    def problem_type(self, task: Any) -> str:
        """As transformers' configs name it."""
        return "regression" if task.is_regression else "single_label_classification"

    def check(self, config: PreTrainedConfig, task: Any, source: str | Path) -> None:
        """Raise TrituneError if the model has another number or another order of labels."""
        if config.num_labels != task.num_labels:
            raise TrituneError(
                f"{source}: the model has {config.num_labels} labels, {task.title} has {task.num_labels}"
            )
        names = [str(config.id2label.get(index, index)).lower() for index in range(config.num_labels)]
        wanted = [label.lower() for label in task.labels or ()]
        if names != wanted and sorted(names) == sorted(wanted):
            raise TrituneError(f"{source}: the model's labels stand in the order {names}, {task.title}'s are {wanted}")

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
        measures = {
            split: partial(task.measure, labels=np.asarray(encoded[split]["labels"]))
            for split in task.dev_splits
            if split in encoded
        }
        return EncodedData(encoded, collator(processor, padding, max_length), measures, task.dev_splits[0])


TEXT_CLASSIFICATION = TextClassification()
