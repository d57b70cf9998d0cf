"""The cells of the convergence benchmark: models, tasks, arms, budgets, and the order in which they tell most.

A unit is 200 end-to-end steps of 16 rows: 3,200 rows through the whole model, forward and backward. 200 steps of
reconstruction of 16 rows are a unit, too, because every block sees each of those rows once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

UNIT_ROWS = 3200
STEP_ROWS = 16
MODELS = ("MiniLM", "e5-small")
SEEDS = (42, 52, 62)
UNITS = (1, 0.5, 3)


@dataclass(frozen=True)
class Work:
    """What a task takes on the command line.

    Attributes:
        task: as `--task` spells it.
        data: the name of its folder.
        teacher: recipe keys of the fine-tuning; None where the pretrained model is the teacher.
        student: recipe keys of every student.
        is_regression: whether the answer is one number.
    """

    task: str
    data: str
    teacher: tuple[str, ...] | None
    student: tuple[str, ...] = ()
    is_regression: bool = False


WORK = {
    "CoLA": Work("cola", "CoLA", ("eval_steps=400",)),
    "MRPC": Work("mrpc", "MRPC", ("eval_steps=230",)),
    "SST-2": Work("sst2", "SST-2", ("eval_steps=313", "num_train_epochs=1")),
    "STS-B": Work("stsb", "STS-B", ("eval_steps=230",), is_regression=True),
    "sentences": Work("features", "STS-B", None, ("max_length=64",)),
}
CLASSIFIERS = ("CoLA", "MRPC", "SST-2", "STS-B")


@dataclass(frozen=True)
class Arm:
    """A way to train a student within a budget.

    Attributes:
        recipe: of the training.
        keys: further recipe keys.
        tasks: that it is for.
        units: the budgets it is tried with.
        reconstructed: the share of the budget that goes into block-wise reconstruction; the rest is end to end.
        reconstruct_rows: rows of one update of a block.
    """

    recipe: str
    keys: tuple[str, ...] = ()
    tasks: tuple[str, ...] = CLASSIFIERS
    units: tuple[float, ...] = UNITS
    reconstructed: float = 0.0
    reconstruct_rows: int = STEP_ROWS

    def reconstruct_steps(self, units: float) -> int:
        """Updates of every block."""
        return round(units * self.reconstructed * UNIT_ROWS / self.reconstruct_rows)

    def end_to_end_steps(self, units: float) -> int:
        """Updates of the whole model."""
        return round(units * (1 - self.reconstructed) * UNIT_ROWS / STEP_ROWS)

    def rows(self, units: float) -> int:
        """Rows through the whole model, forward and backward."""
        return self.reconstruct_rows * self.reconstruct_steps(units) + STEP_ROWS * self.end_to_end_steps(units)

    def overrides(self, units: float) -> tuple[str, ...]:
        """The recipe keys of a budget; one evaluation, after the last step."""
        keys: tuple[str, ...] = (f"max_steps={self.end_to_end_steps(units)}",)
        if self.reconstructed:
            keys += (
                f"reconstruct_steps={self.reconstruct_steps(units)}",
                f"reconstruct_batch_size={self.reconstruct_rows}",
            )
        if self.reconstructed < 1:
            keys += (f"per_device_train_batch_size={STEP_ROWS}", "eval_steps=100000")
        return (*keys, *self.keys)


def _at(rate: str, recipe: str, units: tuple[float, ...] = UNITS) -> dict[str, Arm]:
    """An arm with the published numerics, named after its recipe and learning rate."""
    return {f"{recipe} {rate}": Arm(recipe, (f"learning_rate={rate}",), units=units)}


def _four_bits(*keys: str) -> Arm:
    """The default recipe with 4-bit activations."""
    return Arm("tritune", ("activation_bits=4", *keys), reconstructed=1.0)


FFN_OUT = '"*.layer.[0-9].output.dense"'
LONG = (*UNITS, 12)
ROWS_AND_TOKENS = (
    "weight_granularity=row",
    "activation_granularity=token",
    "weight_clip=null",
    "activation_clip=null",
)
# The most telling first.
ARMS = {
    "tritune": Arm("tritune", tasks=(*WORK,), reconstructed=1.0),
    "tritune, W2A4": _four_bits(),
    "tritune, ternary": Arm("tritune", ("weight_quantizer=twn",), tasks=(*WORK,), reconstructed=1.0),
    **_at("1e-4", "ti-g"),
    "features 2e-4": Arm("features", ("learning_rate=2e-4",), ("sentences",)),
    **_at("1e-4", "ternarybert", LONG),
    **_at("1e-4", "ternarybert-block"),
    "features-ti-g 2e-4": Arm("features-ti-g", ("learning_rate=2e-4",), ("sentences",)),
    **_at("3e-4", "ti-g"),
    **_at("3e-4", "ternarybert", LONG),
    "ti-g rows+tokens 1e-4": Arm("ti-g", ("learning_rate=1e-4", *ROWS_AND_TOKENS)),
    **_at("5e-5", "ti-g"),
    **_at("5e-5", "ternarybert", LONG),
    **_at("1e-4", "ti-o"),
    **_at("1e-4", "ti-c"),
    **_at("1e-4", "ti-m"),
    "ternarybert-block rows+tokens 1e-4": Arm("ternarybert-block", ("learning_rate=1e-4", *ROWS_AND_TOKENS)),
    **_at("1e-4", "kd-map"),
    **_at("1e-4", "kd-block"),
    **_at("1e-4", "kd-map-block"),
    **_at("1e-4", "ti-inverted"),
    **_at("1e-4", "ti-stochastic"),
    # EMNLP 2022: which layers to distil (Fig. 3), and the output loss without the residual (Table 5).
    "ternarybert, every second layer 1e-4": Arm("ternarybert", ("learning_rate=1e-4", "distil_layers=every-2")),
    "ternarybert, every third layer 1e-4": Arm("ternarybert", ("learning_rate=1e-4", "distil_layers=every-3")),
    "ternarybert, last layer 1e-4": Arm("ternarybert", ("learning_rate=1e-4", "distil_layers=last")),
    "kd-projection 1e-4": Arm(
        "kd-block", ("learning_rate=1e-4", "block_output_coefficient=0", "projection_coefficient=1")
    ),
    # Variants of the default recipe.
    "tritune, batches of 8": Arm("tritune", reconstructed=1.0, reconstruct_rows=8),
    "tritune, W2A4, ffn_out A8": _four_bits(f"modules={{{FFN_OUT}: {{activation_bits: 8}}}}"),
    "tritune, W2A4, ffn_out min_max": _four_bits(f"modules={{{FFN_OUT}: {{activation_quantizer: min_max}}}}"),
    "tritune, W2A4, lsq": _four_bits("activation_quantizer=lsq", "activation_granularity=tensor"),
}


@dataclass(frozen=True)
class Cell:
    """A student to train; `units` is its budget."""

    model: str
    task: str
    arm: str
    units: float
    seed: int

    @property
    def rows(self) -> int:
        """Rows through the whole model, forward and backward."""
        return ARMS[self.arm].rows(self.units)

    @property
    def steps(self) -> int:
        """Updates: of every block in reconstruction, and of the whole model."""
        arm = ARMS[self.arm]
        return arm.reconstruct_steps(self.units) + arm.end_to_end_steps(self.units)

    @property
    def folder(self) -> str:
        """The name of its run folder."""
        return f"{self.model} {self.task}, {self.arm}, {self.units:g} units, seed {self.seed}"

    def overrides(self) -> tuple[str, ...]:
        """All recipe keys of the training."""
        shared = ("padding=longest", "bf16=auto", *WORK[self.task].student, f"seed={self.seed}")
        return (*shared, *ARMS[self.arm].overrides(self.units))


def ordered_cells(
    models: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    arms: Sequence[str] | None = None,
    units: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Cell]:
    """The cells in the order in which they are run.

    One unit comes before the other budgets; of a budget, every arm and task with the first seed before any with the
    second. `units` takes the place of every arm's own budgets.
    """
    chosen = [name for name in ARMS if name in (arms or ARMS)]
    budgets = units or dict.fromkeys(budget for name in chosen for budget in ARMS[name].units)
    return [
        Cell(model, task, name, budget, seed)
        for budget in budgets
        for seed in seeds or SEEDS
        for name in chosen
        if units or budget in ARMS[name].units
        for task in WORK
        if task in (tasks or WORK) and task in ARMS[name].tasks
        for model in MODELS
        if model in (models or MODELS)
    ]


def estimated_seconds(cell: Cell, stored: Iterable[Mapping[str, Any]]) -> float:
    """How long a cell may take, from the stored ones that are most like it; 0 if there are none.

    Training takes as long as there are rows; starting programs and evaluating does not depend on them.
    """
    like = [line for line in stored if line["seconds"] != ""]
    for key in ("model", "task", "arm"):
        like = [line for line in like if line[key] == getattr(cell, key)] or like
    times = [
        float(line["seconds"]) * cell.rows / int(line["rows"])
        + max(0.0, float(line["wall_seconds"]) - float(line["seconds"]))
        for line in like
    ]
    return fmean(times) if times else 0.0
