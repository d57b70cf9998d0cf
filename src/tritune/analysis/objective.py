"""A named loss as a function of a model's parameters alone: batch and teacher outputs are fixed."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from ..distil.choices import TASK_LOSS, check_loss
from ..distil.losses import LOSSES, Pair
from ..modeling.instrument import instrument
from ..modeling.modes import evaluation_mode
from .subjects import Batch

Objective = Callable[[PreTrainedModel], torch.Tensor]


def objective(name: str, batch: Batch, teacher: PreTrainedModel | None = None, average: str = "padded") -> Objective:
    """The loss `name` on one batch, and nothing beside it: no weight decay, no other loss.

    The teacher runs once, without a gradient; the returned function may be called many times. Models stay in the mode
    they are in.

    Args:
        name: a row of `distil.losses.LOSSES`; `ground_truth` is the task's own loss (mean cross-entropy on the labels,
            binary for many labels a row, mean squared error for regression).
        batch: model inputs by name and, for `ground_truth`, `labels`, (batch,).
        teacher: a float model of the same shape; `ground_truth` needs none.
        average: `padded` or `valid`, see `distil.losses.means`.

    Returns:
        An instrumented model to its loss, a scalar that autograd can differentiate twice.

    Raises:
        TrituneError: as `check_loss`; later, if the loss needs labels and the batch has none.
    """
    check_loss(name, teacher, average)
    loss = LOSSES[name]
    inputs = {key: tensor for key, tensor in batch.items() if key != "labels"}
    answer = None
    if teacher is not None and name != TASK_LOSS:
        instrument(teacher)
        with evaluation_mode(teacher), torch.no_grad():
            answer = teacher(**inputs, output_trace=loss.fields)

    def evaluate(model: PreTrainedModel) -> torch.Tensor:
        """The loss of `model`, a scalar."""
        output = model(**inputs, output_trace=loss.fields)
        expected = output if answer is None else answer  # the task loss looks at no teacher
        return loss.compute(Pair.of_batch(output, expected, batch, model.config, average=average))

    return evaluate
