"""Rows as a model takes them: those of a task, with what scores the answers, and those that only want an answer."""

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel

from .augmented import Augment, AugmentedRows
from .text import collator
from .text_windows import averaged

# The split of training rows that are kept to select checkpoints.
HELD_OUT = "held_out"
Batch = dict[str, torch.Tensor]
# transformers' collators return mappings that are no dictionaries (BatchEncoding, BatchFeature).
Collate = Callable[[list[dict[str, Any]]], MutableMapping[str, torch.Tensor]]


@dataclass(frozen=True)
class EncodedData:
    """A task's splits as a model takes them, the function that makes batches of them, and what scores the answers.

    Attributes:
        splits: "train" (where it was asked for) and the task's dev splits.
        collate: rows to a batch of tensors.
        measures: for every dev split, predictions (rows, ...) to named metrics.
        select: the dev split whose score is the model's; unless rows are held out, its metric selects checkpoints.
        augment: changes a training row at every visit, where the kind of task knows a way.
        texts: of the splits whose rows are windows of texts: the number of every window's text, (rows,).
    """

    splits: DatasetDict
    collate: Collate
    measures: Mapping[str, Callable[[np.ndarray], dict[str, float]]]
    select: str
    augment: Augment | None = None
    texts: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def dev(self) -> Dataset:
        """The rows whose score is the model's."""
        return self.splits[self.select]

    @property
    def selection(self) -> str:
        """The split whose metric selects checkpoints: `HELD_OUT` where there is one."""
        return HELD_OUT if HELD_OUT in self.splits else self.select

    @property
    def dev_inputs(self) -> np.ndarray:
        """Of every row of `dev` the number of its input, (rows,): that of its text where rows are windows of texts."""
        return self.texts.get(self.select, np.arange(len(self.dev)))

    def of_inputs(self, read: np.ndarray, split: str) -> np.ndarray:
        """A split's logits, (rows, ...), as one answer an input: of windows, the mean over those of a text."""
        return averaged(read, self.texts[split]) if split in self.texts else read

    def training_rows(self, augmentation: str | None, seed: int) -> Dataset | AugmentedRows:
        """The training rows, changed at every visit where `augmentation` is "standard" and the kind of task has one."""
        rows = self.splits["train"]
        return AugmentedRows(rows, self.augment, seed) if self.augment and augmentation == "standard" else rows

    def measure(self, predictions: np.ndarray) -> dict[str, float]:
        """Metrics of predictions (rows, ...) for the rows of `dev`."""
        return self.measures[self.select](predictions)


@dataclass(frozen=True)
class Answering:
    """A model that answers, its tokenizer or image processor, and the lengths of its recipe; images have none.

    What is kept of longer texts is `long_texts`, see `long_texts.token_ids`.
    """

    model: PreTrainedModel
    processor: Any
    max_length: int | None
    padding: str
    long_texts: str = "truncate"

    def collate(self) -> Collate:
        """The collator of tokenized inputs."""
        return collator(self.processor, self.padding, self.max_length)


@dataclass(frozen=True)
class Predictable:
    """Inputs without labels.

    Attributes:
        examples: rows as the model takes them, not always one for one.
        collate: makes batches of them.
        columns: names of the columns that are added to every row.
        answers: what `read` took of the outputs, (examples, ...), to these columns.
        labels: of a classifier.
        shares: its logits, (rows, labels), to the share of every label; None where answers are no labels.
    """

    examples: Dataset
    collate: Collate
    columns: tuple[str, ...]
    answers: Callable[[np.ndarray], list[dict[str, Any]]]
    labels: tuple[str, ...] = ()
    shares: Callable[[np.ndarray], np.ndarray] | None = None
