"""The keys of a recipe. They are flat, and named as in transformers' `TrainingArguments` or as in the papers."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..distil.choices import ALL_LAYERS, AVERAGES, check_distil_layers, check_registered
from ..distil.layer_map import check_layer_map
from ..distil.schedule import SCHEDULES, split_budget
from ..errors import OWN, TrituneError, check_among, shown
from ..modeling.quantization import SAME, WITH_CLIP, Quantization

if TYPE_CHECKING:
    from ..tasks.registry import Task

# Only losses and quantizers know whether these change anything, and they need torch. Few recipes give one of them.
_OF_LOSSES = frozenset(("distil_layers", "layer_map"))
_OF_QUANTIZERS = frozenset(
    ("fused_kernels", "threshold_factor", "weight_clip", "activation_clip", "learned_scale_learning_rate")
)
# What each clip is of.
_CLIPPED = {"weight_clip": ("weight", "embedding"), "activation_clip": ("activation",)}
_OF_RECONSTRUCTION = ("reconstruct_batch_size", "reconstruct_learning_rate")
# Without a training of the whole model these change nothing.
_OF_WHOLE_MODEL = (
    *("learning_rate", "learned_scale_learning_rate", "optimizer", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("weight_decay", "warmup_ratio", "max_grad_norm", "gradient_accumulation_steps", "gradient_checkpointing"),
    *("balance", "logging_steps", "save_steps", "select_on", "student_dropout", "report_to"),
)

PADDINGS = ("max_length", "longest")
GROUP_BY_LENGTH = "group_by_length"
SAMPLING_STRATEGIES = ("random", "sequential", GROUP_BY_LENGTH)
LONG_TEXTS = ("truncate", "head-tail", "window")
BALANCES = ("none", "weights", "sampling")
SELECTIONS = ("dev", "held_out")
OPTIMIZERS = ("bert_adam", "adamw")
IMAGE_AUGMENTATIONS = ("standard", "none")
AUTO = "auto"


@dataclass(frozen=True)
class FinetuneRecipe:
    """How a model is trained, distilled or not.

    Attributes:
        name, description: shown to people.
        max_steps: total number of updates; -1 trains for `num_train_epochs` instead.
        num_train_epochs: passes over the training data.
        learning_rate: peak learning rate.
        optimizer: `bert_adam` (the published one: no bias correction, clipping per tensor, schedule per parameter) or
            `adamw`.
        adam_beta1, adam_beta2, adam_epsilon: hyperparameters of either optimizer.
        weight_decay: decoupled weight decay, not applied to biases and norms.
        warmup_ratio: fraction of the steps used for warm-up.
        max_grad_norm: maximum gradient norm, per tensor with `bert_adam`, global with `adamw`; 0 disables clipping.
        per_device_train_batch_size, per_device_eval_batch_size: null takes the task's batch size.
        gradient_accumulation_steps: batches per update.
        bf16, fp16: mixed precision (autocast); weights, quantizer statistics and losses stay float32. fp16 needs a GPU.
            bf16 may be `auto`, see `settled`.
        gradient_checkpointing: recompute activations in the backward pass instead of storing them.
        train_sampling_strategy: order of the training rows: `random`, `sequential`, or `group_by_length`.
        balance: of classes: `weights`, every row weighs as much as its class is rare; `sampling`, every class comes as
            often as any other; or `none`.
        augmented: train on `train_aug.tsv`, written by `tritune augment`, instead of `train.tsv`.
        max_length: sequence length in tokens; null takes the task's.
        long_texts: what is kept of a text beyond `max_length`: its beginning, `truncate`, as much of its beginning
            as of its end, `head-tail`, or everything, in windows that overlap, `window`.
        padding: `max_length` or `longest`.
        eval_steps: updates between evaluations; null takes the task's.
        logging_steps: updates between lines of `history.jsonl`.
        save_steps: updates between checkpoints.
        select_on: what the best checkpoint is selected on: `dev`, or `held_out`, a tenth of the training rows (at most
            1000) that are not trained on, so that the score on dev is that of a model chosen without it.
        report_to: `none`, `tensorboard`, `trackio`, `wandb`, or any other integration of transformers.
        image_augmentation: `standard`, random views of the training images (see `heads.image_augmentation`), or
            `none`; null is `standard` for images and has no effect on text.
        seed: random seed.
    """

    name: str = ""
    description: str = ""
    max_steps: int = -1
    num_train_epochs: float = 3.0
    learning_rate: float = 2e-5
    optimizer: str = "adamw"
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-6
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    max_grad_norm: float = 1.0
    per_device_train_batch_size: int | None = None
    per_device_eval_batch_size: int | None = None
    gradient_accumulation_steps: int = 1
    bf16: bool | str = False
    fp16: bool = False
    gradient_checkpointing: bool = False
    train_sampling_strategy: str = "random"
    balance: str = "none"
    augmented: bool = False
    max_length: int | None = None
    long_texts: str = "truncate"
    padding: str = "longest"
    eval_steps: int | None = None
    logging_steps: int = 10
    save_steps: int = 100
    select_on: str = "dev"
    report_to: str = "none"
    image_augmentation: str | None = None
    seed: int = 42

    def __post_init__(self):
        check_among(self, "optimizer", OPTIMIZERS)
        check_among(self, "long_texts", LONG_TEXTS)
        check_among(self, "padding", PADDINGS)
        check_among(self, "train_sampling_strategy", SAMPLING_STRATEGIES)
        check_among(self, "select_on", SELECTIONS)
        check_among(self, "balance", BALANCES)
        check_among(self, "image_augmentation", (None, *IMAGE_AUGMENTATIONS))
        for key in ("learning_rate", "adam_epsilon"):
            _check(self, key, lambda value: value > 0, "must be positive")
        for key in ("weight_decay", "max_grad_norm"):
            _check(self, key, lambda value: value >= 0, "must not be negative")
        for key in ("adam_beta1", "adam_beta2", "warmup_ratio"):
            _check(self, key, lambda value: 0 <= value < 1, "must be at least 0 and below 1")
        counts = ("per_device_train_batch_size", "per_device_eval_batch_size", "max_length", "eval_steps")
        for key in (*counts, "gradient_accumulation_steps", "logging_steps", "save_steps"):
            _check(self, key, lambda value: value is None or value >= 1, "must be at least 1")
        _check(self, "bf16", lambda value: value in (True, False, AUTO), "must be true, false or auto")
        _check(self, "fp16", lambda value: not (value and self.bf16 is True), "and bf16 exclude each other")
        fewest = 0 if self.trains_before else 1
        _check(
            self,
            "max_steps",
            lambda value: value >= fewest or value == -1,
            f"must be at least {fewest}, or -1 for epochs",
        )
        _check(self, "num_train_epochs", lambda value: 0 < value <= 1e6, "must be above 0 and at most a million")
        if self.balance == "sampling" and self.train_sampling_strategy != "random":
            raise TrituneError(
                f"balance: sampling draws the rows itself; set train_sampling_strategy random, not "
                f"{self.train_sampling_strategy}"
            )
        if self.select_on == "held_out" and self.augmented:
            raise TrituneError(
                "select_on: held_out and augmented exclude each other: variants of held-out rows would be trained on"
            )
        _check(self, "seed", lambda value: 0 <= value < 2**32, "must be a whole number from 0 to 2^32 - 1")

    def resolve(self, task: "Task", train_rows: int, processes: int = 1) -> Self:
        """The recipe in force: every value that depends on the task, the data or the number of processes is filled in.

        Raises:
            TrituneError: a key is set that has no effect for this kind of task.
        """
        for key, reason in task.head.unused_keys.items():
            if getattr(self, key) is not None:
                raise TrituneError(f"{key} would change nothing for {task.title}: {reason}")
        if task.max_length is None and self.train_sampling_strategy == GROUP_BY_LENGTH:
            raise TrituneError(f"train_sampling_strategy: {task.title} has no lengths to group by; use random")
        if self.long_texts != "truncate" and not (task.head.has_long_texts and len(task.text_columns) == 1):
            raise TrituneError(
                f"long_texts: {self.long_texts} is for the classes and scores of single texts, not for {task.title}; "
                "take truncate"
            )
        if self.balance != "none" and not task.head.has_classes:
            raise TrituneError(f"balance: {task.title} has no class for a whole row; take none")
        if self.balance != "none" and task.problem != "single_label":
            what = "scores" if task.is_regression else "any number of labels a row"
            raise TrituneError(f"balance: {task.title} has {what}, no classes to balance; take none")
        batch = self.per_device_train_batch_size or task.batch_size
        steps = self.max_steps
        if steps < 0:
            batches = math.ceil(train_rows / (batch * processes))
            steps = max(1, math.ceil(self.num_train_epochs * batches / self.gradient_accumulation_steps))
        return replace(
            self,
            max_steps=steps,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=self.per_device_eval_batch_size or task.batch_size,
            max_length=self.max_length or task.max_length,
            eval_steps=self.eval_steps or task.eval_steps,
            **{key: getattr(self, key) or value for key, value in task.head.default_keys.items()},
        )

    @property
    def trains_before(self) -> bool:
        """Whether there is training before the first of `max_steps`, which may then be 0."""
        return False

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """Batch sizes per device of a recipe in force, in training and in evaluation; ValueError before `resolve`."""
        train, evaluation = self.per_device_train_batch_size, self.per_device_eval_batch_size
        if train is None or evaluation is None:
            raise ValueError("the batch sizes depend on the task: resolve the recipe first")
        return train, evaluation

    @property
    def precision(self) -> str:
        """Compute precision of a settled recipe: `bfloat16`, `float16` or `float32`."""
        return "bfloat16" if self.bf16 else "float16" if self.fp16 else "float32"

    def settled(self, bf16: bool) -> Self:
        """The recipe with `bf16: auto` replaced by `bf16`, or by false with `fp16`; any other is returned unchanged."""
        return replace(self, bf16=bf16 and not self.fp16) if self.bf16 == AUTO else self

    def unused_keys(self, given: set[str]) -> dict[str, str]:
        """Those of the `given` keys that have no effect, with the reason."""
        both = {"max_steps", "num_train_epochs"} <= given and self.max_steps >= 0
        return {"num_train_epochs": "max_steps is given too"} if both else {}


@dataclass(frozen=True)
class Coefficients:
    """The weight of each loss of `distil.losses.LOSSES` in the sum; 0 leaves a loss out entirely."""

    logits_coefficient: float = 1.0
    hidden_states_coefficient: float = 1.0
    attention_scores_coefficient: float = 1.0
    attention_map_coefficient: float = 0.0
    block_output_coefficient: float = 0.0
    context_coefficient: float = 0.0
    projection_coefficient: float = 0.0
    ground_truth_coefficient: float = 0.0
    token_scaled_logits_coefficient: float = 0.0
    embedding_coefficient: float = 0.0


@dataclass(frozen=True)
class Recipe(FinetuneRecipe, Coefficients, Quantization):
    """How a QAT student is made: quantization, distillation losses, intervention schedule and training.

    Attributes:
        loss_average: `padded` (as published) or `valid` (independent of padding), see `distil.losses.means`.
        temperature: of the logits loss, see `distil.losses.soft_cross_entropy`.
        distil_layers: layers compared by the per-layer losses: `all`, `last`, `every-n`, or a list counted from 0; see
            `distil.layer_map.distilled_layers`.
        layer_map: teacher layer that each student layer learns from: `uniform`, `last`, or a list counted from 0; null
            for models of the same depth, or for the layers kept by `tritune shrink`. See `layer_map.mapped_layers`.
        losses: coefficients of losses that `register_loss` added, by name; null for none.
        schedule: `map`, `context`, `projection`, `block`, `gradual`, `inverted` or `stochastic`; null: no intervention.
        student_dropout: train the student with the dropout of its config; false: without any, like the teacher.
        cache_teacher: store the teacher's outputs on disk and read them from the second epoch on.
        fused_kernels: use the kernels of `compute.kernels` when training in bf16 on a CPU; null uses them if tritune
            was installed with its native library.
        learned_scale_learning_rate: peak learning rate of the scales and clips that quantizers learn, which are not
            decayed.
        step_one_steps: length of step one; null is min(60, total // 4), or 120 for 60 with CoLA and 4-layer students.
        reconstruct_steps: updates of every block, one block after another, before the `max_steps` updates of the whole
            model, which may then be 0; 0 for none. See `distil.reconstruct`.
        reconstruct_batch_size: rows per update of a part, over all processes.
        reconstruct_learning_rate: at the beginning of every part; it falls linearly to 0.
    """

    optimizer: str = "bert_adam"
    padding: str = "max_length"
    loss_average: str = "padded"
    temperature: float = 1.0
    distil_layers: str | tuple[int, ...] = ALL_LAYERS
    layer_map: str | tuple[int, ...] | None = None
    losses: dict[str, float] | None = field(default=None, hash=False)
    schedule: str | None = None
    step_one_steps: int | None = None
    student_dropout: bool = True
    cache_teacher: bool = False
    fused_kernels: bool | None = None
    learned_scale_learning_rate: float = 1e-4
    reconstruct_steps: int = 0
    reconstruct_batch_size: int = 16
    reconstruct_learning_rate: float = 1e-3

    def __post_init__(self):
        _check(self, "reconstruct_steps", lambda value: value >= 0, "must not be negative")
        FinetuneRecipe.__post_init__(self)
        Quantization.__post_init__(self)
        check_among(self, "loss_average", AVERAGES)
        check_among(self, "schedule", (None, *SCHEDULES), OWN)
        _check(self, "layers", lambda value: value != (), "must name at least one layer, or be null for all")
        for coefficient in fields(Coefficients):
            _check(self, coefficient.name, lambda value: value >= 0, "must not be negative")
        for name, value in (self.losses or {}).items():
            check_registered(name)
            if type(value) not in (int, float) or value < 0:
                raise TrituneError(f"losses: {name} must be a number that is not negative; got {shown(value)}")
        _check(self, "temperature", lambda value: value > 0, "must be positive")
        check_distil_layers(self.distil_layers)
        check_layer_map(self.layer_map)
        if not any(self.coefficients().values()):
            raise TrituneError("every loss coefficient is 0: there is nothing to train on")
        if self.cache_teacher and self.padding == "longest" and self.loss_average == "padded":
            raise TrituneError(
                "cache_teacher: with padding longest the padding differs from epoch to epoch, and loss_average padded "
                "counts it; use padding max_length or loss_average valid"
            )
        if self.cache_teacher and self.augmented:
            raise TrituneError(
                "cache_teacher and augmented exclude each other: the outputs for every variant would be kept, and few "
                "are read again; turn one of them off"
            )
        _check(self, "step_one_steps", lambda value: value is None or value >= 1, "must be at least 1")
        for key in ("learned_scale_learning_rate", "reconstruct_learning_rate"):
            _check(self, key, lambda value: value > 0, "must be positive")
        _check(self, "reconstruct_batch_size", lambda value: value >= 1, "must be at least 1")
        if self.balance == "weights" and not self.ground_truth_coefficient:
            raise TrituneError(
                "balance: weights are those of the ground_truth loss, and ground_truth_coefficient is 0; take sampling"
            )
        if self.max_steps == 0 and self.schedule is not None:
            raise TrituneError(f"schedule: {self.schedule} needs a step one, and max_steps is 0; set schedule null")

    @property
    def trains_before(self) -> bool:
        """Whether blocks are reconstructed."""
        return self.reconstruct_steps > 0

    def section(self, kind: type["Section"]) -> "Section":
        """The values of one of the base classes, as an instance of it."""
        return kind(**{one.name: getattr(self, one.name) for one in fields(kind)})

    def coefficients(self) -> dict[str, float]:
        """Coefficient of each loss of `distil.losses.LOSSES`."""
        shipped = {one.name.removesuffix("_coefficient"): getattr(self, one.name) for one in fields(Coefficients)}
        return shipped | (self.losses or {})

    def settled(self, bf16: bool) -> Self:
        """See `FinetuneRecipe.settled`."""
        recipe = super().settled(bf16)
        if recipe is self or recipe.bf16 or recipe.fused_kernels is not False:
            return recipe
        # Kernels are for bfloat16; without it the key would be refused when this recipe is read again.
        return replace(recipe, fused_kernels=None)

    def with_split(self, task: "Task", student_layers: int) -> Self:
        """The recipe with the length of step one filled in if there is a schedule.

        Raises:
            TrituneError: no steps are left for step two.
        """
        if self.schedule is None:
            return self
        longest = 120 if task.name == "cola" or student_layers == 4 else 60
        step_one = self.step_one_steps or split_budget(self.max_steps, longest)[0]
        if step_one >= self.max_steps:
            raise TrituneError(
                f"step one of {step_one} steps leaves none of max_steps {self.max_steps} for step two; raise max_steps"
            )
        return replace(self, step_one_steps=step_one)

    def unused_keys(self, given: set[str]) -> dict[str, str]:
        """Those of the `given` keys that have no effect, with the reason."""
        unused = super().unused_keys(given) | self._unused_parts()
        if self.schedule is None:
            unused["step_one_steps"] = "there is no schedule, so there is no step one"
        if not self.logits_coefficient:
            unused["temperature"] = "only the logits loss has one, and logits_coefficient is 0"
        if not self.reconstruct_steps:
            unused |= dict.fromkeys(_OF_RECONSTRUCTION, "reconstruct_steps is 0, so no block is reconstructed")
        if self.max_steps == 0:
            unused |= dict.fromkeys(_OF_WHOLE_MODEL, "max_steps is 0, so the whole model is not trained")
            if self.train_sampling_strategy == "sequential":
                unused["train_sampling_strategy"] = "a reconstruction takes rows at random, or grouped by length"
        if given & _OF_LOSSES:
            unused |= self._unused_of_losses()
        # Of what is in question here, the clips of some quantizers are known without looking at them.
        if any(not self.quantizer_names(_CLIPPED.get(key, ())) & set(WITH_CLIP) for key in given & _OF_QUANTIZERS):
            unused |= self._unused_of_quantizers()
        return {key: reason for key, reason in unused.items() if key in given}

    def has_kernels(self) -> bool:
        """Whether training with this recipe may run fused kernels on a CPU."""
        from ..compute.kernels import has_kernel
        from ..quant import QUANTIZERS

        may_be_bf16 = bool(self.bf16) and not self.fp16
        return may_be_bf16 and any(has_kernel(QUANTIZERS[name]) for name in self.names_per_tensor())

    def _unused_parts(self) -> dict[str, str]:
        unused = {}
        if all(one.weight_bits is None for one in self.variants()):
            unused["weight_granularity"] = "weight_bits is null"
        if all(one.bits_of_embedding is None for one in self.variants()):
            unused["embedding_granularity"] = f"{'weight' if self.embedding_bits == SAME else 'embedding'}_bits is null"
        if not self.embeddings:
            embedding_keys = ("embedding_bits", "embedding_quantizer", "embedding_granularity")
            unused |= dict.fromkeys(embedding_keys, "embeddings is false")
        if all(one.activation_bits is None for one in self.variants()):
            unused |= dict.fromkeys(("activation_granularity", "attention_products"), "activation_bits is null")
        return unused

    def _unused_of_losses(self) -> dict[str, str]:
        from ..distil.losses import trace_fields

        if trace_fields(self.coefficients()):
            return {}
        unused = {"distil_layers": "the coefficient of every per-layer loss is 0"}
        if self.schedule is None:
            unused["layer_map"] = "the coefficient of every per-layer loss is 0, and there is no schedule"
        return unused

    def _unused_of_quantizers(self) -> dict[str, str]:
        from ..compute.kernels import has_kernel
        from ..quant import QUANTIZERS, Learned, arguments_of

        unused, names = {}, self.quantizer_names()
        if not self.has_kernels():
            fused = ", ".join(sorted(name for name in QUANTIZERS if has_kernel(QUANTIZERS[name])))
            unused["fused_kernels"] = f"only {fused} with a scale per tensor have one, and in bf16 alone"
        if "twn" not in names:
            unused["threshold_factor"] = "only twn has a threshold factor"
        for key, kinds in _CLIPPED.items():
            own = self.quantizer_names(kinds)
            if not any("clip" in arguments_of(name) for name in own):
                named = ", ".join(sorted(own)) or "none"
                unused[key] = f"no quantizer of {kinds[0]}s in force has a fixed clip ({named})"
        if not any(issubclass(QUANTIZERS[name], Learned) for name in names):
            unused["learned_scale_learning_rate"] = "no quantizer in force learns anything"
        return unused


# What `Recipe.section` gives, and either kind of recipe.
Section = TypeVar("Section", Coefficients, Quantization)
Kind = TypeVar("Kind", FinetuneRecipe, Recipe)


def _check(values: object, key: str, holds: Callable[[Any], bool], message: str) -> None:
    value = getattr(values, key)
    if not holds(value):
        raise TrituneError(f"{key} {message}; got {shown(value)}")
