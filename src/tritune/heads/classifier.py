"""What classifiers of texts, images and words have in common: the labels of their models."""

from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from ..distill import MULTI_LABEL
from ..errors import TrituneError
from ..table import listed
from .head import Head

# How transformers' configs name the problems.
PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "multi_label": MULTI_LABEL,
    "regression": "regression",
}


class Classifier(Head):
    """A kind whose models have one logit a label, or a single one for a score."""

    file_options: ClassVar[tuple[str, ...]] = ("labels",)

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
        return PROBLEM_TYPES[task.problem]

    def check(self, config: PreTrainedConfig, task: Any, source: str | Path) -> None:
        """Raise TrituneError if the model has another number or another order of labels.

        Of a task of one's own also if they have other names, or are answered in another way.
        """
        if config.num_labels != task.num_labels:
            raise TrituneError(
                f"{source}: the model has {config.num_labels} labels, {task.title} has {task.num_labels}"
            )
        names = [str(config.id2label.get(index, index)).lower() for index in range(config.num_labels)]
        wanted = [label.lower() for label in task.labels or ()]
        if names != wanted and sorted(names) == sorted(wanted):
            raise TrituneError(f"{source}: the model's labels stand in the order {names}, {task.title}'s are {wanted}")
        if task.files is None:
            return
        if wanted and names != wanted and names != [f"label_{index}" for index in range(len(names))]:
            raise TrituneError(f"{source}: the model's labels are {listed(names)}, {task.title}'s are {listed(wanted)}")
        if config.problem_type not in (None, self.problem_type(task)):
            raise TrituneError(f"{source}: made for {config.problem_type}, {task.title} is {self.problem_type(task)}")

    def known(self, config: PreTrainedConfig) -> dict[str, Any]:
        """The names of a fine-tuned model's labels in id order."""
        return {"labels": tuple(str(config.id2label.get(index, index)) for index in range(config.num_labels))}
