"""What a run measures of its models, and the `metrics.json` that results."""

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from transformers import PreTrainedModel

from ..checkpoints.load import weights_sha256
from ..checkpoints.size import size_bytes
from ..compute.devices import this_process
from ..distil.schedule import SCHEDULES, teacher_weight
from ..errors import TrituneError
from ..inference.evaluate import assisted_logits, dev_logits, dev_scores, predict
from ..modeling.quantization import Quantization
from ..modeling.sites import Site
from ..recipes import RECIPE_FILE, Recipe, to_yaml
from .arguments import takes_kernels
from .callbacks import StepTimer
from .job import Job, Phase
from .run_folder import BEST, METRICS, read_json, write_json


class Recorder:
    """Collects `metrics.json` during a run, in a file of its own so that a resumed run measures nothing twice.

    Attributes:
        finished: the metrics of a finished run; empty for others.
        begun: those of an interrupted run, as far as it got; empty if there is none.

    Raises:
        TrituneError: the folder holds a run with other rows, or another recipe or teacher.
    """

    def __init__(self, job: Job[Recipe], phases: list[Phase]):
        self.job, self.batch_size = job, job.recipe.batch_sizes[1]
        self.last_step = phases[-1].first_step + phases[-1].steps if phases else 0
        self.metrics = job.facts({phase.name: phase.steps for phase in phases}) | {"rows": job.rows}
        recipe = job.recipe
        self.takes_kernels = takes_kernels(recipe.fused_kernels, recipe.has_kernels(), job.model.device)
        if recipe.bf16:
            self.metrics["fused_kernels"] = self.takes_kernels
        self.finished, self.begun = read_json(job.output / METRICS), read_json(job.record)
        self._check(self.finished or self.begun)

    def _check(self, earlier: dict[str, Any]) -> None:
        """Refuse to continue a run of anything else."""
        if not earlier:
            return
        self.job.check_rows(earlier)
        recipe = (self.job.output / RECIPE_FILE).read_text(encoding="utf-8")
        same = all(earlier.get(key) == self.metrics.get(key) for key in ("task", "data", "metric", "steps"))
        if recipe != to_yaml(self.job.recipe) or not same:
            raise TrituneError(f"{self.job.output}: --resume: the run there has another task or recipe ({RECIPE_FILE})")
        if earlier["teacher"]["sha256"] != weights_sha256(self.job.model):
            raise TrituneError(f"{self.job.output}: --resume: the run there has another teacher")
        own = None if self.job.student is None else weights_sha256(self.job.student)
        if earlier.get("float_student", {}).get("sha256") != own:
            raise TrituneError(f"{self.job.output}: --resume: the run there has another --student")
        self.job.check_rows(earlier, "encoded")

        kernels = earlier.get("fused_kernels"), self.metrics.get("fused_kernels")
        if not self.finished and kernels[0] != kernels[1]:
            warnings.warn(
                f"{self.job.output}: started {'with' if kernels[0] else 'without'} fused kernels and resumed "
                f"{'with' if kernels[1] else 'without'} them: the last bits differ from those of an uninterrupted run",
                stacklevel=2,
            )

    def begin(self, untrained: PreTrainedModel, start: PreTrainedModel | None, start_source: str, step: int) -> None:
        """Measure the models before training, unless a resumed run did; that one continues after `step`."""
        job = self.job
        self.teacher_logits = self._once(
            ("teacher", self.batch_size), lambda: dev_logits(job.model, job.data, job.task, self.batch_size)
        )
        if self.begun:
            self.metrics = self.begun | {"resumed": [*self.begun.get("resumed", ()), step]}
            write_json(job.record, self.metrics)
            return
        scores = dev_scores(self.teacher_logits, job.data, job.task)
        if job.task.metric not in scores:  # where the teacher is the measure
            pair = 2 * (self.teacher_logits[job.data.select],)
            scores |= job.task.head.closeness(*pair, job.task, job.data)
        self.metrics["teacher"] = scores | _origin(job.model, job.source)
        if job.student is not None:
            self.metrics["float_student"] = self._scores(job.student) | _origin(job.student, job.student_source)
        # The first pattern that matches wins, so their order counts, which comparisons of dictionaries ignore.
        made_of = job.recipe.section(Quantization), repr(job.recipe.modules), job.recipe.per_device_train_batch_size
        self.metrics["untrained"] = self._once(
            ("untrained", *made_of, self.batch_size), lambda: self._scores(untrained)
        )
        if start is not None:
            self.metrics["start"] = {"path": start_source, "sha256": weights_sha256(start), **self._scores(start)}
        self.metrics |= {"seconds": 0.0, "seconds_per_step": None}
        job.begin(self.metrics)

    def _once(self, key: Hashable, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What runs on the same models and data share."""
        if key not in self.job.measured:
            self.job.measured[key] = measure()
        return self.job.measured[key]

    def _scores(self, student: PreTrainedModel) -> dict[str, Any]:
        """A student's own scores, and its closeness to the teacher, whose logits come from a pass of its own."""
        job = self.job
        logits = dev_logits(student, job.data, job.task, self.batch_size)
        pair = logits[job.data.select], self.teacher_logits[job.data.select]
        return dev_scores(logits, job.data, job.task) | job.task.head.closeness(*pair, job.task, job.data)

    def _assisted(
        self, student: PreTrainedModel, site: Site, layer_map: tuple[int, ...] | None, weight: float
    ) -> dict[str, Any]:
        """A student's scores with the teacher's tensors plugged in, under names that say so."""
        job, read = self.job, self.job.task.head.read
        data = job.data.dev, job.data.collate, self.batch_size
        scores = job.data.measure(assisted_logits(student, job.model, site, *data, read, layer_map, weight))
        return {f"assisted_{name}": value for name, value in scores.items()} | {"site": site.value}

    def reconstruction(self, student: PreTrainedModel, done: dict[str, Any]) -> None:
        """Record a complete reconstruction, `done` of `reconstruct_student`, and the student's scores after it."""
        steps = {"steps": self.job.recipe.reconstruct_steps}
        self.metrics |= {"reconstruction": steps | done, "reconstructed": self._scores(student)}
        self.spend(done["seconds"])

    def selecting_value(self, student: PreTrainedModel) -> float:
        """The value by which a reconstructed student competes for the best."""
        data, task = self.job.data, self.job.task
        if data.selection == data.select:
            return self.metrics["reconstructed"][task.metric]
        rows = data.splits[data.selection]
        read = predict(student, rows, data.collate, self.batch_size, task.head.read)
        return data.measures[data.selection](read)[task.metric]

    def phase(
        self,
        student: PreTrainedModel,
        phase: Phase,
        layer_map: tuple[int, ...] | None,
        timer: StepTimer,
        seconds: float,
    ) -> None:
        """Record a complete phase."""
        if phase.schedule is not None and "assisted" not in self.metrics:
            last = phase.steps - 1, phase.steps
            site = SCHEDULES[phase.schedule](*last, self.job.recipe.seed)
            assisted = self._assisted(student, site, layer_map, teacher_weight(site, *last))
            self.metrics["assisted"] = assisted | {"step": phase.first_step + phase.steps}
        self.metrics["seconds_per_step"] = timer.per_step() or self.metrics.get("seconds_per_step")
        self.spend(seconds)

    def spend(self, seconds: float) -> None:
        """Add to the seconds of training, and keep everything known so far."""
        self.metrics["seconds"] = round(self.metrics["seconds"] + seconds, 1)
        write_json(self.job.record, self.metrics)

    def finish(self, student: PreTrainedModel, best_step: int | None) -> dict[str, Any]:
        """The metrics with the scores of the best student, made at `best_step`, and of the last one."""
        last = kept = self._scores(student)
        if best_step != self.last_step:
            best = type(student).from_pretrained(self.job.output / BEST, dtype=torch.float32)
            kept = self._scores(best.to(this_process().device))
        return self.metrics | {
            "best": kept | {"step": best_step},
            "last": last | {"step": self.last_step},
            "size_bytes": size_bytes(student),
        }


def _origin(model: PreTrainedModel, source: str) -> dict[str, Any]:
    return {"path": source, "sha256": weights_sha256(model), "size_bytes": size_bytes(model)}
