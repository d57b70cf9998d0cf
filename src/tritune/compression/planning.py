"""How long texts may be, how large batches are and how many steps fit, by the data and by steps measured here."""

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from ..checkpoints.load import positions
from ..checkpoints.prepare import prepare
from ..compute.devices import this_process
from ..inference.evaluate import predict
from ..modeling.quantization import Quantization
from ..recipes import FinetuneRecipe, Recipe, load_recipe
from ..tasks.data import load_task_data
from ..tasks.models import load_model
from ..tasks.registry import Task
from ..training.precision import settle
from ..training.reconstruct import reconstruct
from ..training.reconstruction import bfloat16

TEACHER, STUDENT = "finetune", "tritune"
# Texts are cut where no more than this share of them is longer.
_CUT = 0.01
_FEWEST_STEPS = 20
_EVALUATIONS = 5
# Of rows that lengths are taken of; more would say the same.
_SAMPLE = 5000
# Seconds for what no step is measured of: loading, packing, intervals, the report.
_REST = 15.0


@dataclass(frozen=True)
class Costs:
    """Seconds, measured on this machine.

    Attributes:
        teacher_step: of an update of the teacher.
        student_step: of an update of every part of the student.
        teacher_row, student_row: of one row without a gradient.
    """

    teacher_step: float
    student_step: float
    teacher_row: float
    student_row: float


@dataclass(frozen=True)
class Plan:
    """What will be done.

    Attributes:
        max_length: tokens of an input; longer ones, a share of `cut`, lose their end. None for images.
        batch_size: rows of an update of the teacher.
        teacher_steps: 0 where the model is a teacher already.
        student_steps: updates of every part of the student.
        costs: what the expected seconds follow from.
        rows: of each part.
    """

    max_length: int | None
    cut: float
    batch_size: int
    teacher_steps: int
    student_steps: int
    costs: Costs
    rows: dict[str, int]

    def seconds_of(self, student_steps: int) -> float:
        """Seconds that a student of so many steps is expected to take, with its evaluations."""
        return student_steps * self.costs.student_step + 4 * self.rows["dev"] * self.costs.student_row

    @property
    def stages(self) -> dict[str, float]:
        """The expected seconds of each stage."""
        evaluated = (_EVALUATIONS + 2) * self.rows["dev"] if self.teacher_steps else 0
        teacher = self.teacher_steps * self.costs.teacher_step + evaluated * self.costs.teacher_row
        scored = self.rows["test"] * (self.costs.teacher_row + 2 * self.costs.student_row)
        return {"teacher": teacher, "student": self.seconds_of(self.student_steps), "scores": scored + _REST}

    @property
    def seconds(self) -> float:
        """The expected seconds of everything."""
        return sum(self.stages.values())

    def teacher_recipe(self, seed: int) -> FinetuneRecipe:
        """The fine-tuning."""
        keys = {
            **{"max_steps": self.teacher_steps, "per_device_train_batch_size": self.batch_size, "seed": seed},
            **{"eval_steps": max(1, self.teacher_steps // _EVALUATIONS)},
        }
        return load_recipe(TEACHER, self._overrides(keys), FinetuneRecipe)

    def student_recipe(self, seed: int, steps: int, modules: dict[str, dict[str, Any]] | None = None) -> Recipe:
        """The distillation; `modules` have settings of their own."""
        recipe = load_recipe(STUDENT, self._overrides({"reconstruct_steps": steps, "seed": seed}))
        return replace(recipe, modules=modules) if modules else recipe

    def _overrides(self, keys: dict[str, Any]) -> list[str]:
        return [*(f"{key}={value}" for key, value in keys.items()), *self.lengths]

    @property
    def lengths(self) -> list[str]:
        """What a recipe must be told of lengths."""
        return [] if self.max_length is None else [f"max_length={self.max_length}"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `Plan.of` reads it back."""
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Plan":
        """A plan from `as_dict`."""
        return cls(**values | {"costs": Costs(**values["costs"])})


def planned(
    source: str | Path,
    task: Task,
    trains: bool,
    rows: dict[str, int],
    minutes: float | None,
    seed: int,
    longest: int,
) -> Plan:
    """Measure a few steps and plan with them.

    Args:
        source: the model that is fine-tuned, or distilled as it is.
        task: with its files.
        trains: whether it is fine-tuned.
        rows: of each part.
        minutes: that everything may take; None for as long as the usual steps take.
        seed: of the rows that are measured.
        longest: tokens that an input may have at most.

    Raises:
        TrituneError: the model cannot be used for this task.
    """
    began = time.perf_counter()
    task = task.for_model(source)
    model = load_model(source, task, new_head=trains).to(this_process().device)
    room = None if task.max_length is None else min(longest, positions(model) or longest)
    processor = task.head.load_processor(source, model, room)
    read = load_task_data(task, splits=["train"])["train"]
    drawn = np.random.default_rng(seed).permutation(len(read))[:_SAMPLE]
    data = task.head.encode({"train": read.select(drawn)}, task, processor, room, "longest")
    encoded, max_length, cut = data.splits["train"], room, 0.0
    # Windows are as long as there is room: questions may take a sixth of it, and would lose their end in shorter ones.
    if room is not None and not task.head.windows:
        max_length, cut, encoded = _length(encoded, room)
    batch_size = 16 if rows["train"] < 5000 else 32
    costs = _measured(model, task, encoded, data.collate, batch_size, trains)
    epochs = 5 if rows["train"] < 2000 else 3
    teacher = max(100, epochs * -(-rows["train"] // batch_size)) if trains else 0
    student = load_recipe(STUDENT).reconstruct_steps
    plan = Plan(max_length, cut, batch_size, teacher, student, costs, rows)
    return plan if minutes is None else _within(plan, 60 * minutes - (time.perf_counter() - began))


def _length(rows: Dataset, room: int) -> tuple[int, float, Dataset]:
    """Tokens that an input may have, the share of rows that are longer, and those that are not."""
    lengths = np.array([len(ids) for ids in rows["input_ids"]])
    max_length = min(room, _multiple(int(np.quantile(lengths, 1 - _CUT, method="higher"))))
    # What is as long as there is room for has been cut already.
    cut = float(((lengths > max_length) | (lengths == room)).mean())
    return max_length, cut, rows.select(np.flatnonzero(lengths <= max_length))


def _within(plan: Plan, seconds: float) -> Plan:
    """The plan with as many of its steps as fit."""
    idle = replace(plan, teacher_steps=min(1, plan.teacher_steps), student_steps=0).seconds
    share = min(1.0, max(0.0, seconds - idle) / max(plan.seconds - idle, 1e-9))
    return replace(
        plan,
        teacher_steps=min(plan.teacher_steps, max(_FEWEST_STEPS, int(share * plan.teacher_steps))),
        student_steps=max(_FEWEST_STEPS, int(share * plan.student_steps)),
    )


def _multiple(length: int) -> int:
    return -(-length // 8) * 8


def _measured(
    model: PreTrainedModel, task: Task, rows: Dataset, collate: Callable, batch_size: int, trains: bool
) -> Costs:
    """Seconds of steps on random rows; the model is spoilt."""
    recipe = settle(load_recipe(STUDENT))
    device = model.device
    batch = {name: tensor.to(device) for name, tensor in collate(_some(rows, batch_size)).items()}
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    student = prepare(copy.deepcopy(model), recipe.section(Quantization), inputs)
    own = recipe.reconstruct_batch_size
    batches = [collate(_some(rows, own, place)) for place in range(4)]
    with bfloat16(device) if recipe.bf16 else nullcontext():
        first, fourth = (
            _seconds(partial(reconstruct, student, model, batches, steps=steps, head=task.head)) for steps in (1, 4)
        )
    some = rows.select(range(min(len(rows), 32)))
    teacher_row, student_row = (
        _seconds(partial(predict, one, some, collate, 32, task.head.read)) / len(some) for one in (model, student)
    )
    student_step = max((fourth - first) / 3, fourth / 20)
    if not trains:
        return Costs(0.0, student_step, teacher_row, student_row)
    model.requires_grad_(True).train()
    asked = task.head.model_inputs(batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def update() -> None:
        """One step, as of a fine-tuning."""
        with bfloat16(device) if recipe.bf16 else nullcontext():
            loss = model(**asked).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for a GPU

    update()
    return Costs(_seconds(update, 2), student_step, teacher_row, student_row)


def _some(rows: Dataset, count: int, place: int = 0) -> list[dict[str, Any]]:
    """As many rows, from the `place`-th stretch of them on, over again where they end."""
    return [rows[(place * count + index) % len(rows)] for index in range(count)]


def _seconds(work: Callable[[], Any], times: int = 1) -> float:
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times
