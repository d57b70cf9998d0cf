"""transformers' Trainer for every kind of task: what it scores is what the task's head reads."""

from contextlib import nullcontext
from typing import Any

import torch

from ..checkpoints.files import usual_modes
from ..tasks.heads import TEXT_CLASSIFICATION, Head
from .resume import ResumableTrainer


class HeadTrainer(ResumableTrainer):
    """Trains a float model on the task's own loss; its evaluations give the scores of `evaluate.dev_scores`.

    Args:
        *args: as Trainer takes them.
        head: the kind of task.
        **kwargs: as Trainer takes them.
    """

    # A mean over the batch, whatever it is that the model counts.
    loss_is_scaled_for_ga = False

    def __init__(self, *args: Any, head: Head = TEXT_CLASSIFICATION, **kwargs: Any):
        self.head = head
        super().__init__(*args, **kwargs)
        if self.args.label_names is None:
            # Of every kind; Trainer would take the names of the model's own arguments.
            self.label_names = ["labels"]
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The model's own loss.

        Args:
            model: wrapped or not.
            inputs: the batch, `labels` among it.
            return_outputs: whether to return the model's output too.
            num_items_in_batch: accepted because Trainer passes it; the loss is a mean, so it is not needed.
        """
        return super().compute_loss(model, self.head.model_inputs(inputs), return_outputs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's; others may read the files if the umask lets them."""
        with usual_modes(output_dir or self.args.output_dir) if self.args.should_save else nullcontext():
            super().save_model(output_dir, _internal_call)

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The loss of a batch (None without logits), what the head reads of the output, (batch, ...), and the labels.

        Args:
            model: wrapped or not.
            inputs: the batch, `labels` among it.
            prediction_loss_only: whether the loss is enough.
            ignore_keys: of the output; only Trainer's own way, which serves rows without labels, looks at them.
        """
        if "labels" not in inputs:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        if not self.head.has_logits:
            labels = inputs.pop("labels")
            with torch.no_grad(), self.compute_loss_context_manager():
                return None, self.head.read(model(**inputs), inputs).detach(), labels
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, output = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach().mean(), None, None
        return loss.detach().mean(), self.head.read(output, inputs).detach(), inputs["labels"].detach()
