"""What classifiers of texts, images and words have in common: the labels of their models, and answers by name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedConfig, PreTrainedModel

from ...engine.answers import MULTI_LABEL, first_row_not_finite, is_score, label_names, predictions, probabilities
from ...errors import TrituneError
from ..table import listed
from .answering import Predictable
from .head import Head, Task
from .text import Collate

# How transformers' configs name the problems.
PROBLEM_TYPES = {"single_label": "single_label_classification", "multi_label": MULTI_LABEL, "regression": "regression"}


class Classifier(Head):
    """A kind whose models have one logit a label, or a single one for a score."""

    file_options: ClassVar[tuple[str, ...]] = ("labels",)

    def options(self, task: Task) -> dict[str, Any]:
        """The number of labels, their names and the loss that goes with them."""
        options: dict[str, Any] = {"num_labels": task.num_labels, "problem_type": PROBLEM_TYPES[task.problem]}
        if task.labels is None:
            return options
        ids = {label: index for index, label in enumerate(task.labels)}
        return options | {"id2label": dict(enumerate(task.labels)), "label2id": ids}

    def check(self, config: PreTrainedConfig, task: Task, source: str | Path) -> None:
        """Raise TrituneError if the model has another number or another order of labels.

        For a user's own task also if they have other names, or the problem is another one.
        """
        if config.num_labels != task.num_labels:
            raise TrituneError(
                f"{source}: the model has {config.num_labels} labels, {task.title} has {task.num_labels}"
            )
        names = [name.lower() for name in label_names(config.id2label)]
        wanted = [label.lower() for label in task.labels or ()]
        if names != wanted and sorted(names) == sorted(wanted):
            raise TrituneError(f"{source}: the model's labels are in the order {names}, {task.title}'s are {wanted}")
        if task.files is None:
            return
        if wanted and names != wanted and names != [f"label_{index}" for index in range(len(names))]:
            raise TrituneError(f"{source}: the model's labels are {listed(names)}, {task.title}'s are {listed(wanted)}")
        problem = PROBLEM_TYPES[task.problem]
        if config.problem_type not in (None, problem):
            raise TrituneError(f"{source}: made for {config.problem_type}, {task.title} is {problem}")

    def known(self, config: PreTrainedConfig) -> dict[str, Any]:
        """The names of a fine-tuned model's labels in id order."""
        return {"labels": label_names(config.id2label)}


def measures_of(encoded: DatasetDict, task: Task) -> dict[str, Callable[[np.ndarray], dict[str, float]]]:
    """For every split with labels, logits (rows, labels) to the task's metrics against them."""
    return {
        split: partial(task.measure, labels=np.asarray(encoded[split]["labels"]))
        for split in task.scored_splits
        if split in encoded
    }


def named_answers(examples: Dataset, collate: Collate, model: PreTrainedModel, name: str) -> Predictable:
    """Examples, one per row of the table `name`, whose logits become a `prediction`, see `engine.answers`."""
    config, source = model.config, model.name_or_path
    problem = config.problem_type
    has_labels = not is_score(config.num_labels, problem)
    labels = label_names(config.id2label) if has_labels else ()

    def answers(logits: np.ndarray) -> list[dict[str, Any]]:
        """One answer a row."""
        if row := first_row_not_finite(logits):
            raise TrituneError(f"{source}: gives NaN or infinite values for row {row} of {name}; train it again")
        return [{"prediction": prediction} for prediction in predictions(logits, labels, problem)]

    shares = partial(probabilities, problem_type=problem) if has_labels else None
    return Predictable(examples, collate, ("prediction",), answers, labels, shares)
