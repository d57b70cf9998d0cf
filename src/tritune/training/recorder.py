"""What a run measures of its models, and the `metrics.json` that it becomes."""

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from transformers import PreTrainedModel

from ..checkpoints.load import weights_sha256
from ..checkpoints.size import size_bytes
from ..distil.schedule import SCHEDULES
from ..errors import TrituneError
from ..inference.evaluate import assisted_logits, dev_logits, dev_scores
from ..modeling.quantization import Quantization
from ..modeling.trace import Site
from ..recipes import RECIPE_FILE, to_yaml
from ..tasks.task_file import TASK_FILE, task_record, task_to_yaml
from .arguments import takes_kernels
from .callbacks import BestModel, StepTimer
from .job import Job, Phase
from .run_folder import BEST, CHECKPOINTS, METRICS, read_json, write_json, write_text
from .versions import library_versions


class _Measure:
    """What `metrics.json` says of a model, against the teacher's logits from a pass of its own."""

    def __init__(self, job: Job):
        self.job, self.batch_size = job, job.recipe.per_device_eval_batch_size
        self.teacher_logits = self._once(
            ("teacher", self.batch_size), lambda: dev_logits(job.model, job.data, job.task, self.batch_size)
        )

    def _once(self, key: Hashable, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if key not in self.job.measured:
            self.job.measured[key] = measure()
        return self.job.measured[key]

    def teacher(self) -> dict[str, Any]:
        """The teacher's scores, origin and size."""
        job = self.job
        origin = {"path": job.source, "sha256": weights_sha256(job.model), "size_bytes": size_bytes(job.model)}
        return dev_scores(self.teacher_logits, job.data, job.task) | origin

    def float_student(self) -> dict[str, Any]:
        """Scores, origin and size of the float model that the student begins as."""
        model, source = self.job.student, self.job.student_source
        origin = {"path": source, "sha256": weights_sha256(model), "size_bytes": size_bytes(model)}
        return self.student(model) | origin

    def untrained(self, student: PreTrainedModel) -> dict[str, Any]:
        """Scores of the quantized float model, which follow from how it is quantized and on which rows calibrated."""
        recipe = self.job.recipe
        # Of two patterns the first that matches wins, so their order counts; dictionaries compare without it.
        made_of = recipe.section(Quantization), repr(recipe.modules), recipe.per_device_train_batch_size
        return self._once(("untrained", *made_of, self.batch_size), lambda: self.student(student))

    def student(self, student: PreTrainedModel) -> dict[str, Any]:
        """A student's scores, alone, and its closeness to the teacher."""
        job = self.job
        logits = dev_logits(student, job.data, job.task, self.batch_size)
        pair = logits[job.data.select], self.teacher_logits[job.data.select]
        return dev_scores(logits, job.data, job.task) | job.task.head.closeness(*pair, job.task, job.data)

    def assisted(self, student: PreTrainedModel, site: Site) -> dict[str, Any]:
        """A student's scores with the teacher inside, under names that say so."""
        job = self.job
        logits = assisted_logits(
            student,
            job.model,
            site,
            job.data.dev,
            job.data.collate,
            self.batch_size,
            job.task.head.read,
            job.recipe.layer_map,
        )
        scores = job.data.measure(logits)
        return {f"assisted_{name}": value for name, value in scores.items()} | {"site": site.value}


class Recorder:
    """Gathers `metrics.json` while the run goes on, in a file of its own so that a resumed run measures nothing twice.

    Raises:
        TrituneError: the folder holds a run of other rows, or of another recipe or teacher.

    Attributes:
        finished: the metrics of a run that came to its end; empty for others.
        begun: those of a run that was stopped, as far as it got; empty where there is none.
    """

    def __init__(self, job: Job, phases: list[Phase]):
        self.job = job
        self.last_step = phases[-1].first_step + phases[-1].steps
        self.path = job.output / CHECKPOINTS / "metrics.json"
        self.metrics = {
            "task": job.task.name,
            "metric": job.task.metric,
            "recipe": job.recipe.name,
            "seed": job.recipe.seed,
            "precision": job.recipe.precision,
            "steps": {phase.name: phase.steps for phase in phases},
            "versions": library_versions(),
            **task_record(job.task),
            "rows": job.rows,
        }
        recipe = job.recipe
        self.takes_kernels = takes_kernels(recipe.fused_kernels, recipe.has_kernels(), job.model.device)
        if recipe.bf16:
            self.metrics["fused_kernels"] = self.takes_kernels
        self.finished, self.begun = read_json(job.output / METRICS), read_json(self.path)
        self._check(self.finished or self.begun)

    def _check(self, earlier: dict[str, Any]) -> None:
        """Refuse to go on with a run of other making."""
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
                f"{self.job.output}: begun {'with' if kernels[0] else 'without'} fused kernels and going on "
                f"{'with' if kernels[1] else 'without'} them: the last bits are not those of a run never stopped",
                stacklevel=2,
            )

    def begin(self, untrained: PreTrainedModel, start: PreTrainedModel | None, start_source: str, step: int) -> None:
        """Measure what there is before the training, unless a resumed run did; that one goes on after `step`."""
        self.measure = _Measure(self.job)
        if self.begun:
            self.metrics = self.begun | {"resumed": [*self.begun.get("resumed", ()), step]}
            write_json(self.path, self.metrics)
            return
        self.metrics["teacher"] = self.measure.teacher()
        if self.job.student is not None:
            self.metrics["float_student"] = self.measure.float_student()
        self.metrics["untrained"] = self.measure.untrained(untrained)
        if start is not None:
            self.metrics["start"] = {
                "path": start_source,
                "sha256": weights_sha256(start),
                **self.measure.student(start),
            }
        self.metrics["seconds"] = 0.0
        # The recipe first: a folder that holds one is a run that can go on.
        write_text(self.job.output / RECIPE_FILE, to_yaml(self.job.recipe))
        if self.job.task.files is not None:
            write_text(self.job.output / TASK_FILE, task_to_yaml(self.job.task))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.metrics)

    def phase(self, student: PreTrainedModel, phase: Phase, timer: StepTimer, seconds: float) -> None:
        """Note a phase that is complete."""
        if phase.schedule is not None and "assisted" not in self.metrics:
            site = SCHEDULES[phase.schedule](phase.steps - 1, phase.steps, self.job.recipe.seed)
            self.metrics["assisted"] = self.measure.assisted(student, site) | {"step": phase.first_step + phase.steps}
        self.metrics["seconds"] = round(self.metrics["seconds"] + seconds, 1)
        self.metrics["seconds_per_step"] = timer.per_step() or self.metrics.get("seconds_per_step")
        write_json(self.path, self.metrics)

    def finish(self, student: PreTrainedModel, best: BestModel) -> dict[str, Any]:
        """The metrics with the scores of the best and of the last student."""
        last = kept = self.measure.student(student)
        if best.step != self.last_step:
            earlier = type(student).from_pretrained(self.job.output / BEST, dtype=torch.float32).to(student.device)
            kept = self.measure.student(earlier)
        return self.metrics | {
            "best": kept | {"step": best.step},
            "last": last | {"step": self.last_step},
            "size_bytes": size_bytes(student),
        }
