"""transformers' Trainer for every kind of task, with the optimizer of the published recipes."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import PreTrainedModel, SchedulerType, TrainingArguments

from ..checkpoints.files import usual_modes
from ..distil.losses.ground_truth import class_cross_entropy
from ..distil.losses.means import wide
from ..errors import TrituneError
from ..recipes.recipe import OPTIMIZERS
from ..tasks.heads import TEXT_CLASSIFICATION, Head
from ..tasks.heads.augmented import EpochOf
from .optimizer import BertAdam, learning_rate
from .resume import ResumableTrainer


class HeadTrainer(ResumableTrainer):
    """Trains a float model on the task's own loss; its evaluations give the scores of `evaluate.dev_scores`.

    Args:
        model: the model to train.
        args: `TrainingArguments`. `bert_adam` clips each tensor by itself to its `max_grad_norm`, and replaces
            `lr_scheduler_type` by a schedule of its own.
        head: the kind of task.
        optimizer: `adamw`, Trainer's own, or `bert_adam`, see `BertAdam`. `optimizers` in `kwargs` overrides both.
        warmup_ratio: of `bert_adam`, the fraction of steps used for warm-up.
        class_weights: (classes,), of the rows of each class in the loss of a training step, see `class_cross_entropy`.
        sampler: of the training rows, told its `epoch` before each; None goes by `train_sampling_strategy`.
        **kwargs: passed to Trainer.

    Raises:
        TrituneError: the optimizer is unknown.
    """

    # A mean over the batch, whatever the model counts.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments | None = None,
        *,
        head: Head = TEXT_CLASSIFICATION,
        optimizer: str = "adamw",
        warmup_ratio: float = 0.1,
        class_weights: Sequence[float] | None = None,
        sampler: Sampler | None = None,
        **kwargs: Any,
    ):
        if optimizer not in OPTIMIZERS:
            raise TrituneError(f"unknown optimizer {optimizer!r}; known are {', '.join(OPTIMIZERS)}")
        args = TrainingArguments() if args is None else args
        self.head, self.warmup_ratio, self.max_grad_norm = head, warmup_ratio, args.max_grad_norm
        self.takes_bert_adam = optimizer == "bert_adam" and kwargs.get("optimizers", (None, None))[0] is None
        if self.takes_bert_adam:  # it clips and schedules by itself, so Trainer must do neither
            args = copy.copy(args)
            args.max_grad_norm, args.lr_scheduler_type, args.warmup_steps = 0, SchedulerType.CONSTANT, 0
        super().__init__(model=model, args=args, **kwargs)
        if self.args.label_names is None:
            # Of every kind of task; Trainer would take the names of the model's own arguments.
            self.label_names = ["labels"]
        self.model_accepts_loss_kwargs = False
        self.class_weights = None if class_weights is None else torch.tensor(class_weights, device=self.args.device)
        self.sampler = sampler
        if sampler is not None:
            self.add_callback(EpochOf(sampler))

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that was chosen; biases and norms are not decayed."""
        if self.takes_bert_adam:
            options = {
                "lr": self.args.learning_rate,
                "total_steps": self.state.max_steps,
                "warmup": self.warmup_ratio,
                "betas": (self.args.adam_beta1, self.args.adam_beta2),
                "eps": self.args.adam_epsilon,
                "max_grad_norm": self.max_grad_norm,
            }
            self.optimizer_cls_and_kwargs = (BertAdam, options)
        return super().create_optimizer(model)

    def _get_learning_rate(self) -> float:
        """The rate of the update just made; Trainer's own scheduler is constant under `bert_adam`."""
        if not self.takes_bert_adam:
            return super()._get_learning_rate()
        return learning_rate(self.args.learning_rate, self.state.global_step, self.state.max_steps, self.warmup_ratio)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The model's own loss, and its output with `return_outputs`; a mean, whatever `num_items_in_batch`.

        In training its rows have the weights of their classes.
        """
        inputs = self.head.model_inputs(inputs)
        if self.class_weights is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        _, output = super().compute_loss(model, inputs, return_outputs=True)
        (logits,) = wide(output["logits"])
        loss = class_cross_entropy(logits, inputs["labels"], self.class_weights)
        return (loss, output) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        return super()._get_train_sampler(train_dataset) if self.sampler is None else self.sampler

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        # Scores go by the order of the rows, whatever that of the training rows; several processes have a part each.
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None  # type: ignore[arg-type]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """See Trainer; the files get the modes that the umask allows."""
        with usual_modes(output_dir or self.folder) if self.args.should_save else nullcontext():
            super().save_model(output_dir, _internal_call)

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The loss of a batch (None without logits), what the head reads of the output, (batch, ...), and the labels.

        Trainer's own method serves batches without `labels`.
        """
        if "labels" not in inputs:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            if not self.head.has_logits:
                labels = inputs.pop("labels")
                return None, self.head.read(model(**inputs), inputs).detach(), labels
            loss, output = self.compute_loss(model, inputs, return_outputs=True)
        loss = loss.detach().mean()
        if prediction_loss_only:
            return loss, None, None
        return loss, self.head.read(output, inputs).detach(), inputs["labels"].detach()
