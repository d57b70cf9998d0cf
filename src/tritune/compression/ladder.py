"""The ladder: students of one teacher, each larger or trained longer than the one before, until one is close enough."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from ..analysis.sensitivity import KINDS, OUTSIDE, sensitivity
from ..inference.evaluate import predict
from ..modeling.instrument import instrument_of
from ..progress import Say, clock
from ..tasks.models import load_model
from ..tasks.registry import Task
from ..training.job import Job, open_job
from ..training.run import plan as phases_of
from ..training.run import run
from ..training.run_folder import METRICS, read_json, write_json
from .planning import Plan

PARTS = "parts.json"
_LONGER = 3
_ROWS = 128


@dataclass(frozen=True)
class Tried:
    """A student that was made.

    Attributes:
        name: of its rung.
        folder: its run.
        score, loss: on the dev part; the loss is its teacher's score less its own, in points.
        size_bytes: from bit widths.
    """

    name: str
    folder: Path
    score: float
    loss: float
    size_bytes: int


@dataclass(frozen=True)
class Ladder:
    """What every rung shares.

    Attributes:
        teacher: its folder or hub name.
        task: with the train and dev parts.
        plan: steps and length.
        folder: of the runs.
        seed: of all of them.
        say: told what happens, a line each.
    """

    teacher: str | Path
    task: Task
    plan: Plan
    folder: Path
    seed: int
    say: Say

    def climb(self, max_loss: float | None, ends: float | None) -> list[Tried]:
        """Make students until one loses at most `max_loss` points; without a bound, the first alone.

        Args:
            max_loss: in points of the selecting metric, on the dev part.
            ends: the time, as of `time.time`, after which no rung is begun; finished ones are looked at all the same.

        Returns:
            The students in the order in which they were made.

        Raises:
            Interrupted: a signal was received; the next call goes on.
        """
        tried: list[Tried] = []
        for name, steps, modules in self._rungs():
            folder = self.folder / name.replace(" ", "-").replace(",", "")
            seconds = self.plan.seconds_of(steps)
            if tried and ends is not None and time.time() + seconds > ends and not (folder / METRICS).is_file():
                self.say(f"stopped before {name!r}: it would take {seconds:.0f} s, longer than --minutes")
                break
            tried.append(self._made(name, folder, steps, modules(), seconds))
            one = tried[-1]
            self.say(
                f"{name}: {100 * one.score:.1f} on dev, {one.loss:+.1f} points lost, {one.size_bytes / 1e6:.2f} MB"
            )
            if max_loss is None or one.loss <= max_loss:
                break
        return tried

    def _rungs(self) -> Iterator[tuple[str, int, Callable[[], dict[str, dict[str, Any]] | None]]]:
        """Name, steps and, looked up when its turn has come, the settings of single modules."""
        usual, longer = self.plan.student_steps, _LONGER * self.plan.student_steps
        yield "2 bits", usual, lambda: None
        yield f"2 bits, {longer} steps", longer, lambda: None
        for share, word in ((0.25, "quarter"), (0.5, "half")):
            for bits in (4, 8):
                yield f"a {word} in {bits} bits", longer, partial(self._modules, share, bits)

    def _made(
        self, name: str, folder: Path, steps: int, modules: dict[str, dict[str, Any]] | None, seconds: float
    ) -> Tried:
        if not (folder / METRICS).is_file():
            self.say(f"{name}: {steps} steps of every part, until about {clock(seconds)}")
        recipe = self.plan.student_recipe(self.seed, steps, modules)
        job: Job = open_job(self.teacher, self.task, None, recipe, folder, resume=True)
        metrics = run(job, phases_of(job), resume=True)
        metric = self.task.metric
        score, aim = metrics["last"][metric], metrics["teacher"][metric]
        return Tried(name, folder, score, 100 * (aim - score), metrics["size_bytes"])

    def _modules(self, share: float, bits: int) -> dict[str, dict[str, Any]]:
        """Settings with more bits for the parts that lose most by having two."""
        parts = read_json(self.folder / PARTS).get("parts")
        if parts is None:
            self.say("looking for the parts that lose most by having 2 bits")
            parts = self._sensitive()
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / PARTS, {"parts": parts})
        chosen = parts[: max(1, round(share * len(parts)))]
        self.say(f"in {bits} bits: {', '.join(part['name'] for part in chosen)}")
        return {module: {"weight_bits": bits} for part in chosen for module in part["modules"]}

    def _sensitive(self) -> list[dict[str, Any]]:
        """The parts of the first student with weights, most sensitive first."""
        folder = self.folder / "2-bits"
        student = load_model(folder, self.task)
        job = open_job(self.teacher, self.task, None, self.plan.student_recipe(self.seed, 1), folder, resume=True)
        rows = job.data.dev.select(range(min(_ROWS, len(job.data.dev))))
        wanted = _logits(job.model, rows, job)
        result = sensitivity(student, lambda model: -float(np.mean((_logits(model, rows, job) - wanted) ** 2)))
        anatomy = instrument_of(student).anatomy
        gains: list[tuple[float, str, tuple[str, ...]]] = []
        for row, layer in enumerate(result.layers):
            names = anatomy.parts([layer])
            for column, kind in enumerate(KINDS):
                gain = result.without[row, column] - result.quantized_score
                if names.get(kind) and not np.isnan(gain):
                    gains.append((gain, f"{kind} of layer {layer}", names[kind]))
        everywhere = anatomy.parts([])
        for kind in OUTSIDE:
            if kind in result.outside_without:
                gains.append((result.outside_without[kind] - result.quantized_score, kind, everywhere[kind]))
        return [{"name": name, "modules": list(modules)} for _, name, modules in sorted(gains, reverse=True)]


def _logits(model: PreTrainedModel, rows: Dataset, job: Job) -> np.ndarray:
    return predict(model, rows, job.data.collate, 32, job.task.head.read)


def chosen(tried: list[Tried], max_loss: float | None) -> Tried:
    """The student that ships: the smallest within the bound, or else the one that loses least."""
    within = [one for one in tried if max_loss is None or one.loss <= max_loss]
    if within:
        return min(within, key=lambda one: (one.size_bytes, one.loss))
    return min(tried, key=lambda one: (one.loss, one.size_bytes))


def plot_sizes(tried: list[Tried], ships: Tried, aim: float, metric: str, max_loss: float | None) -> Figure:
    """Size against dev score of all that were tried, with the teacher's score and the bound as lines."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.axhline(100 * aim, linestyle="--", color="0.4", label="teacher")
    if max_loss is not None:
        axes.axhline(100 * aim - max_loss, linestyle=":", color="0.4", label=f"{max_loss:g} points below")
    for one in tried:
        axes.plot(one.size_bytes / 1e6, 100 * one.score, "o" if one is ships else ".", color="C0", markersize=9)
        note = one.name + " (ships)" * (one is ships)
        axes.annotate(
            note, (one.size_bytes / 1e6, 100 * one.score), (6, 4), textcoords="offset points", fontsize="small"
        )
    axes.set_xlabel("size (MB)")
    axes.set_ylabel(f"{metric.replace('_', ' ')} on dev (%)")
    axes.margins(x=0.25, y=0.15)
    axes.legend(fontsize="small")
    return figure
