"""What every kind of task says: the model's class, its new head, its input files, its batches and its scores."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ..distill import kl_divergence
from ..errors import TrituneError
from .augmented import Augment, AugmentedRows

if TYPE_CHECKING:
    from pathlib import Path

Collate = Callable[[list[dict]], dict[str, torch.Tensor]]
Read = Callable[[ModelOutput, dict[str, torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class EncodedData:
    """A task's splits as a model takes them, the function that makes batches of them, and what scores the answers.

    Attributes:
        splits: "train" (where it was asked for) and the task's dev splits.
        collate: rows to a batch of tensors.
        measures: for every dev split, predictions (rows, ...) to named metrics.
        select: the dev split whose metric selects checkpoints.
        augment: changes a training row at every visit, where the kind of task knows a way.
    """

    splits: DatasetDict
    collate: Collate
    measures: Mapping[str, Callable[[np.ndarray], dict[str, float]]]
    select: str
    augment: Augment | None = None

    @property
    def dev(self) -> Dataset:
        """The rows of the dev split that selects."""
        return self.splits[self.select]

    def training_rows(self, augmentation: str | None, seed: int) -> Dataset | AugmentedRows:
        """The rows of "train" as a training visits them, changed anew every time where `augmentation` is "standard"."""
        rows = self.splits["train"]
        return AugmentedRows(rows, self.augment, seed) if augmentation == "standard" else rows

    def measure(self, predictions: np.ndarray) -> dict[str, float]:
        """Metrics of predictions (rows, ...) for the dev split that selects."""
        return self.measures[self.select](predictions)


def read_logits(output: ModelOutput, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits, (batch, classes), of a classifier's output."""
    return output.logits


def stacked(answers: list[torch.Tensor]) -> np.ndarray:
    """The answers of all batches, each (batch, ...), one below the other in float32."""
    return np.concatenate([answer.float().cpu().numpy() for answer in answers])


class Head(ABC):
    """A kind of task. A task is any object with the attributes of `tasks.Task`.

    Attributes:
        name: the hub's name of the kind, as a task file spells it.
        auto_model: the transformers class that loads such a model.
        auto_processor: the one that loads what turns its inputs into tensors.
        unused_keys: of a recipe, that mean nothing to this kind, with the reason.
        default_keys: of a recipe, that mean something to this kind alone, with the value that null stands for.
    """

    name: ClassVar[str]
    auto_model: ClassVar[type]
    auto_processor: ClassVar[type]
    unused_keys: ClassVar[Mapping[str, str]] = {"image_augmentation": "there are no images"}
    default_keys: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def options(self, task: Any) -> dict[str, Any]:
        """What `from_pretrained` takes to make a new head for `task`."""

    @abstractmethod
    def check(self, config: PreTrainedConfig, task: Any, source: "str | Path") -> None:
        """Raise TrituneError, naming `source`, if a model of this config was made for other labels than the task's."""

    @abstractmethod
    def load_processor(self, source: "str | Path", model: PreTrainedModel, max_length: int | None) -> Any:
        """The tokenizer or image processor beside a model.

        Raises:
            TrituneError: there is none, or it does not belong to the model.
        """

    @abstractmethod
    def encode(
        self, splits: DatasetDict, task: Any, processor: Any, max_length: int | None, padding: str
    ) -> EncodedData:
        """Rows as the readers give them to rows as the model takes them, with `labels`.

        Raises:
            TrituneError: a row cannot be used.
        """

    def describe(
        self, files: "Mapping[str, Path]", columns: Sequence[str] | None, label_column: str | None
    ) -> dict[str, Any]:
        """The fields of a `tasks.Task` for a user's own files: columns, labels, metric, lengths.

        Args:
            files: "train" and "validation" to their files; either may be missing.
            columns: that hold the inputs; None looks for the usual ones.
            label_column: that holds the label; None looks for "label".

        Raises:
            TrituneError: a file cannot be used, or this kind takes none.
        """
        raise TrituneError(f"{self.name}: files of one's own are not taken; name a task of the table")

    def read_files(self, task: Any, splits: Sequence[str]) -> DatasetDict:
        """These splits of `task.files`.

        Raises:
            TrituneError: a file or a row cannot be used; the message names it.
        """
        raise TrituneError(f"{self.name}: files of one's own are not taken; name a task of the table")

    def read(self, output: ModelOutput, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """What is scored and compared of a model's output: logits, (batch, classes), unless a kind says otherwise."""
        return read_logits(output, batch)

    def closeness(self, student: np.ndarray, teacher: np.ndarray, task: Any) -> dict[str, float]:
        """How close a student's logits, (rows, labels), are to its teacher's from a pass of its own.

        Returns:
            `agreement`, the share of rows with the same answer, and `kl_to_teacher`, KL(teacher || student) per row;
            for regression `mse_to_teacher`.
        """
        if task.is_regression:
            return {"mse_to_teacher": float(np.mean((student - teacher) ** 2))}
        divergence = kl_divergence(torch.from_numpy(student).double(), torch.from_numpy(teacher).double())
        return {
            "agreement": float(np.mean(student.argmax(-1) == teacher.argmax(-1))),
            "kl_to_teacher": float(divergence),
        }
