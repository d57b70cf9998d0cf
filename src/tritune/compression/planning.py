"""How long texts may be, how large batches are and how many steps fit, by the data and by steps measured here."""

import copy
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import PreTrainedModel

from ..checkpoints.load import positions
from ..checkpoints.prepare import prepare
from ..compute.devices import this_process
from ..inference.evaluate import predict
from ..modeling.quantization import Quantization
from ..recipes import FinetuneRecipe, Recipe, load_recipe
from ..recipes.recipe import GROUP_BY_LENGTH
from ..tasks.data import load_task_data
from ..tasks.heads.long_texts import WINDOW
from ..tasks.models import load_model
from ..tasks.registry import Task
from ..training.precision import settle
from ..training.reconstruct import reconstruct
from ..training.reconstruction import bfloat16

TEACHER, STUDENT = "finetune", "tritune"
# As long as texts may be, no more than this share of them is longer.
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
        teacher_row, student_row: of one row without a gradient, with all windows of its text.
    """

    teacher_step: float
    student_step: float
    teacher_row: float
    student_row: float


@dataclass(frozen=True)
class Plan:
    """What will be done.

    Attributes:
        max_length: tokens of an input; longer ones are a share of `cut`. None for images.
        batch_size: rows of an update of the teacher.
        teacher_steps: 0 where the model is a teacher already.
        student_steps: updates of every part of the student.
        costs: what the expected seconds follow from.
        rows: of each part.
        long_texts: what is kept of longer ones, as in recipes.
        grouped: whether inputs of similar length share a batch.
    """

    max_length: int | None
    cut: float
    batch_size: int
    teacher_steps: int
    student_steps: int
    costs: Costs
    rows: dict[str, int]
    long_texts: str = "truncate"
    grouped: bool = False

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

    def teacher_recipe(self, seed: int, balance: str = "none") -> FinetuneRecipe:
        """The fine-tuning, with its classes in `balance`."""
        keys = {
            **{"max_steps": self.teacher_steps, "per_device_train_batch_size": self.batch_size, "seed": seed},
            **{"eval_steps": max(1, self.teacher_steps // _EVALUATIONS), "balance": balance},
        }
        # Balanced sampling has an order of its own.
        return load_recipe(TEACHER, self._overrides(keys, balance != "sampling"), FinetuneRecipe)

    def student_recipe(self, seed: int, steps: int, modules: dict[str, dict[str, Any]] | None = None) -> Recipe:
        """The distillation; `modules` have settings of their own."""
        recipe = load_recipe(STUDENT, self._overrides({"reconstruct_steps": steps, "seed": seed}))
        return replace(recipe, modules=modules) if modules else recipe

    def _overrides(self, keys: dict[str, Any], may_group: bool = True) -> list[str]:
        order = [f"train_sampling_strategy={GROUP_BY_LENGTH}"] if self.grouped and may_group else []
        return [*(f"{key}={value}" for key, value in keys.items()), *self.lengths, *order]

    @property
    def lengths(self) -> list[str]:
        """What a recipe must be told of lengths."""
        return [] if self.max_length is None else [f"max_length={self.max_length}", f"long_texts={self.long_texts}"]

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
    long_texts: str = "truncate",
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
        long_texts: what is kept of longer ones.

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
    sample = DatasetDict(train=read.select(drawn))
    data = task.head.encode(sample, task, processor, room, "longest")
    batch_size = 16 if rows["train"] < 5000 else 32
    encoded, max_length, cut, grouped = data.splits["train"], room, 0.0, False
    windows = len(encoded) / len(drawn)  # of questions; of texts, see below
    # Windows are as long as there is room: questions may take a sixth of it, and would lose their end in shorter ones.
    if room is not None and not task.head.windows:
        lengths = np.array([len(ids) for ids in encoded["input_ids"]])
        max_length, cut = _length(lengths, room)
        if long_texts == WINDOW:
            in_windows = replace(task, long_texts=long_texts)
            encoded = task.head.encode(sample, in_windows, processor, max_length, "longest").splits["train"]
            lengths, windows = np.array([len(ids) for ids in encoded["input_ids"]]), len(encoded) / len(drawn)
        grouped = mostly_padding(np.minimum(lengths, max_length), batch_size)
        encoded = encoded.select(_typical(lengths) if grouped else np.flatnonzero(lengths <= max_length))
    costs = _measured(model, task, encoded, data.collate, batch_size, trains)
    costs = replace(costs, teacher_row=windows * costs.teacher_row, student_row=windows * costs.student_row)
    epochs = 5 if rows["train"] < 2000 else 3
    teacher = max(100, epochs * math.ceil(windows * rows["train"] / batch_size)) if trains else 0
    student = load_recipe(STUDENT).reconstruct_steps
    plan = Plan(max_length, cut, batch_size, teacher, student, costs, rows, long_texts, grouped)
    return plan if minutes is None else _within(plan, 60 * minutes - (time.perf_counter() - began))


def _length(lengths: np.ndarray, room: int) -> tuple[int, float]:
    """Tokens that an input may have, and the share of rows that are longer."""
    max_length = min(room, _multiple(int(np.quantile(lengths, 1 - _CUT, method="higher"))))
    # What is as long as there is room for has been cut already.
    return max_length, float(((lengths > max_length) | (lengths == room)).mean())


def mostly_padding(lengths: np.ndarray, batch_size: int) -> bool:
    """Whether rows of these lengths, in their order, make batches of which more than half would be padding.

    >>> mostly_padding(np.array([5, 5, 5, 50]), 4), mostly_padding(np.array([5, 5, 50, 50]), 2)
    (True, False)
    """
    batches = lengths[: len(lengths) // batch_size * batch_size].reshape(-1, batch_size)
    return bool(batches.size) and float(batches.max(1).mean()) > 2 * float(batches.mean())


def _typical(lengths: np.ndarray) -> np.ndarray:
    """The rows, those of mean length first: grouped by length, batches cost on average what a batch of these does."""
    return np.argsort(np.abs(lengths - lengths.mean()), kind="stable")


def _within(plan: Plan, seconds: float) -> Plan:
    """The plan with as many of its steps as fit; the student's take half of the time at most where both are cut."""
    idle = replace(plan, teacher_steps=min(1, plan.teacher_steps), student_steps=0).seconds
    spare = max(0.0, seconds - idle)
    teacher = max(replace(plan, student_steps=0).seconds - idle, 1e-9)
    student = max(plan.seconds - idle - teacher, 1e-9)
    taught = min(teacher, spare - min(student, spare / 2))
    return replace(
        plan,
        teacher_steps=min(plan.teacher_steps, max(_FEWEST_STEPS, int(taught / teacher * plan.teacher_steps))),
        student_steps=max(_FEWEST_STEPS, int(min(1.0, (spare - taught) / student) * plan.student_steps)),
    )


def _multiple(length: int) -> int:
    return -(-length // 8) * 8


def _measured(
    model: PreTrainedModel, task: Task, rows: Dataset, collate: Callable, batch_size: int, trains: bool
) -> Costs:
    """Seconds of steps on the first of some rows; the model is spoilt."""
    recipe = settle(load_recipe(STUDENT))
    device = model.device
    batch = {name: tensor.to(device) for name, tensor in collate(_some(rows, batch_size)).items()}
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    student = prepare(copy.deepcopy(model), recipe.section(Quantization), inputs)
    own = recipe.reconstruct_batch_size
    batches = [collate(_some(rows, own, place)) for place in range(4)]
    with bfloat16(device) if recipe.bf16 else nullcontext():
        first, fourth = (
            _seconds(partial(reconstruct, student, model, batches[:steps], steps=steps, head=task.head))
            for steps in (1, 4)
        )
    some = rows.select(range(min(len(rows), 32)))
    teacher_row, student_row = (
        _seconds(partial(predict, one, some, collate, 32, task.head.read)) / len(some) for one in (model, student)
    )
    # Both measured their error on all of their batches, before and after, as a long one does on a few.
    student_step = max((fourth - first) / 3 - 2 * own * student_row, fourth / 20)
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
