"""`DistillationTrainer`: transformers' Trainer with a teacher, named losses and an intervention schedule."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.modeling_outputs import ModelOutput
from transformers.trainer_utils import TrainOutput

from ..compute.held import forget_weights, weights_held
from ..compute.kernels import fused_kernels
from ..distil.choices import ALL_LAYERS, AVERAGES, check_temperature
from ..distil.layer_map import distilled_layers
from ..distil.losses import LOSSES, Pair, distillation_losses, trace_fields
from ..distil.losses.means import total
from ..distil.schedule import SCHEDULES, teacher_weight
from ..errors import Interrupted, TrituneError
from ..inference.evaluate import longest_first
from ..modeling.dropout import dropping_modules
from ..modeling.instrument import instrument_of, is_instrumented
from ..modeling.sites import Site
from ..modeling.trace import Intervention
from ..progress import tracked
from ..tasks.heads import TEXT_CLASSIFICATION, Head
from .arguments import separate_learned_scales, takes_kernels
from .head_trainer import HeadTrainer
from .hidden_projection import HiddenProjection
from .pairing import check_hidden_states, pairing
from .precision import check_precision
from .teacher_cache import ROW, TeacherCache

HIDDEN_PROJECTION = "hidden_projection.pt"
TERNARYBERT = {"logits": 1.0, "hidden_states": 1.0, "attention_scores": 1.0}


class _AfterUpdate(TrainerCallback):
    """Forgets what is no longer valid: quantized weights and gradients of the projection of hidden states.

    Some optimizers write to `weight.data`, which autograd does not count as a change, and Trainer clears only the
    gradients of its model.
    """

    def __init__(self, projection: HiddenProjection | None):
        self.projection = projection

    def on_optimizer_step(self, args, state, control, **kwargs):
        """Forget both after every update."""
        forget_weights()
        if self.projection is not None:
            self.projection.zero_grad()


class DistillationTrainer(HeadTrainer):
    """Trains a QAT student against a float teacher; evaluation is of the student alone.

        student = tritune.prepare(model)
        trainer = DistillationTrainer(model=student, teacher=teacher, args=args, train_dataset=data, schedule="gradual")
        trainer.train()

    Args:
        model: the student, from `tritune.prepare`.
        teacher: a float model, usually of the same shape; it is instrumented, frozen and put into evaluation mode.
        args: `TrainingArguments`, see `HeadTrainer` for `bert_adam`.
        coefficients: the weight of each loss of `distil.losses.LOSSES`; None for TernaryBERT's three.
        schedule: a name of `schedule.SCHEDULES`, or None for no intervention.
        loss_average: `padded` or `valid`, see `distil.losses.means`.
        temperature: of the logits loss, see `distil.losses.soft_cross_entropy`.
        distil_layers: student layers that the per-layer losses compare: `all`, `last`, `every-n` or a list counted from
            0; see `distil.layer_map.distilled_layers`.
        layer_map: the teacher layer that each student layer learns from: `uniform`, `last` or a list; None for the same
            depth, see `pairing.pairing`. If hidden states differ in width, a `HiddenProjection` is trained as well.
        optimizer: `bert_adam`, the published algorithm with rate, betas, eps and decay from `args` (the recipes hold
            the published values), or `adamw`, Trainer's own. `optimizers` in `kwargs` overrides both.
        warmup_ratio: of `bert_adam`, the fraction of steps used for warm-up.
        learned_scale_learning_rate: of what quantizers learn, in a parameter group without weight decay.
        student_dropout: whether the student's dropout, and stochastic depth, are active in training; its config keeps
            their rates either way.
        head: the kind of task; for models without logits, its `read` gives the embeddings that are compared.
        teacher_cache: stores the teacher's outputs between epochs; the rows of `train_dataset` then need their numbers
            in a column "row". None computes the outputs every time.
        fused_kernels: use the kernels of `compute.kernels` for bf16 training on a CPU; None uses them if tritune
            was installed with them, and warns otherwise.
        **kwargs: passed to Trainer.

    Raises:
        TrituneError: the student is not prepared, teacher and student do not match, or a name is unknown.
    """

    _signature_columns: list[str] | None  # type: ignore[assignment]  # Trainer initializes it with None, its only type

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel,
        args: TrainingArguments | None = None,
        *,
        coefficients: dict[str, float] | None = None,
        schedule: str | None = None,
        loss_average: str = "padded",
        temperature: float = 1.0,
        distil_layers: str | Sequence[int] = ALL_LAYERS,
        layer_map: str | Sequence[int] | None = None,
        optimizer: str = "bert_adam",
        warmup_ratio: float = 0.1,
        learned_scale_learning_rate: float = 1e-4,
        student_dropout: bool = True,
        head: Head = TEXT_CLASSIFICATION,
        teacher_cache: TeacherCache | None = None,
        fused_kernels: bool | None = None,
        **kwargs: Any,
    ):
        self.coefficients = dict(TERNARYBERT if coefficients is None else coefficients)
        self.schedule, self.loss_average, self.temperature = schedule, loss_average, temperature
        self.teacher_cache, self.fused_kernels = teacher_cache, fused_kernels
        self.learned_scale_learning_rate = learned_scale_learning_rate
        _check_names(self.coefficients, schedule, loss_average)
        layers = _check_models(model, teacher)
        _check_head(self.coefficients, model, head)
        pair = pairing(model, teacher, self.coefficients, schedule, layer_map)
        self.layers, self.layer_map = distilled_layers(distil_layers, layers), pair.layer_map
        check_hidden_states(model, self.coefficients, self.layers)
        check_temperature(temperature, teacher.config.num_labels == 1)
        # What the losses read, and of which layers; nothing else is recorded.
        self.trace_wanted = dict.fromkeys(trace_fields(self.coefficients), self.layers)
        self.teacher_trace_wanted = dict.fromkeys(self.trace_wanted, _taught(self.layers, self.layer_map))
        self.hidden_projection: HiddenProjection | None = None
        self.silenced = [] if student_dropout else dropping_modules(model)
        self.site: Site | None = None
        self._sums: torch.Tensor | None = None
        self.current_gradient_accumulation_steps = 1  # as Trainer counts them once it trains
        super().__init__(model, args, head=head, optimizer=optimizer, warmup_ratio=warmup_ratio, **kwargs)
        if pair.hidden_widths is not None:
            self._add_hidden_projection(pair.hidden_widths, has_own_optimizer=self.optimizer is not None)
        self.add_callback(_AfterUpdate(self.hidden_projection))
        self._check_devices()
        self._check_cache()
        self.teacher = teacher.eval().requires_grad_(False).to(self.args.device)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that was chosen; biases, norms and learned scales are not decayed."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            separate_learned_scales(optimizer, self.model if model is None else model, self.learned_scale_learning_rate)
            if self.hidden_projection is not None:
                maps = list(self.hidden_projection.parameters())
                optimizer.add_param_group({"params": maps, "weight_decay": self.args.weight_decay})
        return optimizer

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """See Trainer; a weight is quantized once per update, regardless of the number of batches.

        With gradient checkpointing, which saves memory, it is quantized as often as it is needed.
        """
        self._sums = None
        takes = takes_kernels(self.fused_kernels, self.args.bf16, self.args.device)
        with (
            fused_kernels() if takes else nullcontext(),
            nullcontext() if self.args.gradient_checkpointing else weights_held(),
        ):
            return super().train(*args, **kwargs)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """In training the weighted sum of the distillation losses; in evaluation the student's own loss.

        Raises:
            TrituneError: a loss is not finite; the message names the step and the loss.
        """
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        for module in self.silenced:  # Trainer puts all modules into training mode before every batch
            module.training = False
        batch = {name: value for name, value in inputs.items() if name not in ("labels", ROW)}
        step, steps = self.state.global_step, self.state.max_steps
        self.site = SCHEDULES[self.schedule](step, steps, self.args.seed) if self.schedule else None
        teacher = self._teacher_output(batch, inputs)
        student = model(
            **batch,
            output_trace=self.trace_wanted,
            intervention=self.site
            and Intervention(self.site, teacher["trace"], teacher_weight(self.site, step, steps)),
        )
        if self.hidden_projection is not None:
            student.trace.hidden_states = self.hidden_projection(student.trace.hidden_states)
        pair = Pair.of_batch(
            student,
            teacher,
            inputs,
            self.teacher.config,
            average=self.loss_average,
            temperature=self.temperature,
            layers=self.layers,
            causal=_is_language_model(self.teacher, teacher),
            class_weights=self.class_weights,
            embeddings=(
                None if self.head.has_logits else (self.head.read(student, batch), self.head.read(teacher, batch))
            ),
        )
        losses = distillation_losses(pair, self.coefficients)
        self._check_and_sum(losses)
        loss = total(self.coefficients[name] * value for name, value in losses.items())
        return (loss, student) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """See Trainer; the log also has every single loss, averaged over updates, batches and processes."""
        if "loss" in logs and self._sums is not None:
            *sums, updates = self.accelerator.reduce(self._sums, reduction="mean").tolist()
            names = [name for name, weight in self.coefficients.items() if weight]
            logs.update({f"{name}_loss": value / updates for name, value in zip(names, sums, strict=True)})
            self._sums = None
        super().log(logs, start_time)

    def fill_teacher_cache(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Compute the teacher's outputs for all rows; those of similar length share a batch, with little padding.

        Args:
            stopped: asked before every batch whether to give up.

        Raises:
            Interrupted: it said yes.
        """
        rows = self._remove_unused_columns(self.train_dataset, "training")
        loader = DataLoader(
            rows,
            self.args.train_batch_size,
            sampler=longest_first(rows),
            collate_fn=self.data_collator,
            generator=torch.Generator(),  # so that it draws nothing from the one that dropout draws from
        )
        for inputs in tracked(loader, "outputs of the teacher", len(loader), "batches"):
            if stopped():
                raise Interrupted("stopped in the outputs of the teacher; --resume computes them again")
            inputs = self._prepare_inputs(inputs)
            self._teacher_output({n: value for n, value in inputs.items() if n not in ("labels", ROW)}, inputs)

    def site_name(self) -> str | None:
        """The site of the current step's intervention as text, or None."""
        return self.site.value if self.site else None

    def _teacher_output(self, batch: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor]) -> ModelOutput:
        wanted = self.teacher_trace_wanted | ({self.site.field: None} if self.site else {})

        def forward(batch: dict[str, torch.Tensor]) -> ModelOutput:
            """The teacher's output, as deep as the student; Trainer's own autocast covers the student alone."""
            with torch.no_grad(), self.accelerator.autocast():
                output = self.teacher(**batch, output_trace=wanted)
            if wanted:
                output.trace = output.trace.mapped(self.layer_map)
            return output

        # Step one is short and needs tensors of its own, so the cache serves steps without intervention.
        if self.teacher_cache is None or self.site is not None:
            return forward(batch)
        if self.teacher.training:
            raise TrituneError("cache_teacher: the teacher is in training mode, so its outputs differ every time")
        return self.teacher_cache.outputs(batch, inputs[ROW], forward)

    def _add_hidden_projection(self, widths: tuple[int, int], has_own_optimizer: bool) -> None:
        if self.args.world_size > 1:
            raise TrituneError(
                f"hidden states of widths {widths[0]} and {widths[1]}: only supported in a single process"
            )
        if has_own_optimizer:
            raise TrituneError(
                f"hidden states of widths {widths[0]} and {widths[1]} need projections that your own optimizer does "
                "not know: leave `optimizers` out, or set hidden_states_coefficient to 0"
            )
        self.hidden_projection = HiddenProjection(*widths, self.args.seed).to(self.args.device)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.hidden_projection is not None and self.args.should_save:
            torch.save(self.hidden_projection.state_dict(), Path(output_dir) / HIDDEN_PROJECTION)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.hidden_projection is not None and checkpoint is not None:
            path = Path(checkpoint) / HIDDEN_PROJECTION
            self.hidden_projection.load_state_dict(torch.load(path, self.args.device, weights_only=True))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = self._signature_columns or []
        if self.teacher_cache is not None and ROW not in columns:
            self._signature_columns = [*columns, ROW]

    def _check_devices(self) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise TrituneError("FSDP and DeepSpeed are not supported: run under torchrun or accelerate with plain DDP")
        check_precision(self.args.bf16, self.args.fp16, self.args.device)
        options = self.args.gradient_checkpointing and self.args.gradient_checkpointing_kwargs
        if isinstance(options, dict) and options.get("use_reentrant"):
            raise TrituneError(
                "reentrant gradient checkpointing loses the gradients of the traces: use_reentrant=False"
            )
        if self.args.n_gpu > 1:
            raise TrituneError(f"{self.args.n_gpu} GPUs in one process: start one process per GPU with torchrun")
        trains_classifier = self.coefficients.get("logits") or self.coefficients.get("ground_truth")
        if self.args.world_size > 1 and self.head.has_logits and not trains_classifier:
            raise TrituneError("with several processes the classifier must be trained: set logits_coefficient above 0")

    def _check_cache(self) -> None:
        if self.teacher_cache is not None and self.args.world_size > 1:
            raise TrituneError("cache_teacher: only supported in a single process")
        rows = self.train_dataset
        if self.teacher_cache is not None and (rows is None or isinstance(rows, IterableDataset) or ROW not in rows[0]):
            raise TrituneError(f"cache_teacher: train_dataset must number its rows in a column {ROW!r}")

    def _check_and_sum(self, losses: dict[str, torch.Tensor]) -> None:
        """Add the losses, and a one that counts them, to the sums since the last log."""
        values = torch.stack([value.detach() for value in losses.values()])
        for name, value in zip(losses, values.tolist(), strict=True):
            if not math.isfinite(value):
                raise TrituneError(
                    f"step {self.state.global_step + 1}: the {name} loss is {value}; lower learning_rate, or check the "
                    "teacher's weights"
                )
        summand = torch.cat([values, values.new_ones(1)]) / self.current_gradient_accumulation_steps
        self._sums = summand if self._sums is None else self._sums + summand


def _check_names(coefficients: dict[str, float], schedule: str | None, average: str) -> None:
    for what, value, known in (
        *(("coefficient", name, LOSSES) for name in coefficients),
        ("schedule", schedule, (None, *SCHEDULES)),
        ("loss_average", average, AVERAGES),
    ):
        if value not in known:
            raise TrituneError(f"unknown {what} {value!r}; known are {', '.join(str(name) for name in known)}")
    if not any(coefficients.values()):
        raise TrituneError("every loss has the coefficient 0; there is nothing to train on")


def _is_language_model(model: PreTrainedModel, output: ModelOutput) -> bool:
    """Whether the logits at a token predict the next one."""
    logits = output.get("logits")
    return instrument_of(model).anatomy.is_causal and logits is not None and logits.ndim == 3


def _check_head(coefficients: dict[str, float], student: PreTrainedModel, head: Head) -> None:
    """Check that the losses fit the head of the model."""
    if head.has_logits:
        if coefficients.get("embedding"):
            raise TrituneError("embedding: only for sentence encoders; pass a `head` that reads sentence embeddings")
        return
    if named := [name for name in ("logits", "ground_truth") if coefficients.get(name)]:
        raise TrituneError(f"{named[0]}: sentence encoders have no logits; set the coefficient to 0")
    # The embedding does not come from the pooler: without a gradient, DDP would wait for it forever.
    for name in instrument_of(student).anatomy.pooler:
        student.get_submodule(name).requires_grad_(False)


def _check_models(student: PreTrainedModel, teacher: PreTrainedModel) -> int:
    """The number of the student's layers, after checks."""
    if not is_instrumented(student):
        raise TrituneError("the student is a plain model; make it with tritune.prepare(model)")
    if getattr(teacher.config, "quantization_config", None) is not None:
        raise TrituneError(
            "the teacher is quantized; prepare works in place, so prepare a copy.deepcopy of the teacher"
        )
    labels = [model.config.num_labels for model in (student, teacher)]
    if labels[0] != labels[1]:
        raise TrituneError(f"the student has {labels[0]} labels and the teacher {labels[1]}")
    return len(instrument_of(student).anatomy.sites)


def _taught(layers: tuple[int, ...] | None, layer_map: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The teacher layers that the losses read; None for all."""
    if layer_map is None:
        return layers
    return layer_map if layers is None else tuple(layer_map[layer] for layer in layers)
