"""What a prediction needs: a model with its tokenizer and lengths, and inputs without labels as it takes them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel

from .text import Collate, collator


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
