"""The main job: a teacher, a task and a recipe become a folder with a QAT student and what was measured on the way.

Step one trains with the teacher's tensors plugged in, step two without, each with a fresh optimizer and schedule
(Teacher Intervention, EACL 2023, section 4). A recipe without intervention has a single phase.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import AutoModelForSequenceClassification, EvalPrediction, PreTrainedModel, set_seed

from ..errors import TrituneError
from ..evaluate import assisted_logits, closeness, dev_logits, dev_scores
from ..load import weights_sha256
from ..prepare import prepare
from ..quantization import Quantization
from ..recipes import RECIPE_FILE, to_yaml
from ..schedule import SCHEDULES
from ..size import size_bytes
from ..tasks import Task
from ..trace import Site
from .arguments import training_arguments
from .callbacks import BestModel, History, StepTimer
from .card import CARD, model_card
from .job import Job
from .resume import train
from .run_folder import BEST, CHECKPOINTS, HISTORY, METRICS, claimed, read_json, remove, write_json, write_text
from .trainer import DistillationTrainer


@dataclass(frozen=True)
class Phase:
    """One training with one optimizer and one schedule.

    Attributes:
        name: "step one", "step two", or "training" where there is only one.
        steps: updates it makes.
        schedule: of the intervention, or None.
        first_step: updates that earlier phases made.
    """

    name: str
    steps: int
    schedule: str | None
    first_step: int = 0


def plan(job: Job, only: str | None = None) -> list[Phase]:
    """The phases of a job.

    Args:
        job: what to work on.
        only: "one" or "two" to make one step alone.

    Raises:
        TrituneError: `only` names a step of a recipe that has none.
    """
    recipe, one = job.recipe, job.recipe.step_one_steps
    if one is None:
        if only:
            raise TrituneError(f"--phase {only}: recipe {recipe.name} has no schedule, so it has one phase only")
        return [Phase("training", recipe.max_steps, None)]
    two = recipe.max_steps - one
    phases = {"one": Phase("step one", one, recipe.schedule), "two": Phase("step two", two, None, first_step=one)}
    return [phases[only]] if only else list(phases.values())


def run(
    job: Job, phases: list[Phase], start: PreTrainedModel | None = None, start_source: str = "", resume: bool = False
) -> dict[str, Any]:
    """Train a student through `phases`, write the run folder, and return its metrics.

    Args:
        job: what to work on.
        phases: from `plan`.
        start: an earlier run's student to go on from, changed in place; None takes the quantized teacher.
        start_source: where `start` came from, for the record.
        resume: go on with the run that lies in `job.output`, if one does; the final weights are those of a run that
            was never stopped.

    Returns:
        What `metrics.json` holds.

    Raises:
        Interrupted: a signal came; the run can be resumed.
        TrituneError: the recipe's `layers` do not fit the model, the folder belongs to another run, or it cannot be
            written to.
    """
    process = PartialState()
    job.model.to(process.device)
    untrained = prepare(copy.deepcopy(job.model), job.recipe.section(Quantization))
    student = untrained if start is None else start.to(process.device)
    with claimed(job.output, resume):
        recorder = _Recorder(job, phases)
        if recorder.finished:
            return recorder.finished
        recorder.begin(untrained, start, start_source)
        set_seed(job.recipe.seed)
        best = [_train(job, student, phase, recorder, is_last=phase is phases[-1]) for phase in phases][-1]
        process.wait_for_everyone()
        metrics = recorder.finish(student, best)
        if process.is_main_process:
            student.save_pretrained(job.output)
            job.tokenizer.save_pretrained(job.output)
            write_text(job.output / CARD, str(model_card(metrics, job.recipe, str(job.output))))
            write_json(job.output / METRICS, metrics)
            remove(job.output / CHECKPOINTS)
    return metrics


class _Measure:
    """What `metrics.json` says of a model, against the teacher's logits from a pass of its own."""

    def __init__(self, job: Job):
        self.job, self.batch_size = job, job.recipe.per_device_eval_batch_size
        self.teacher_logits = dev_logits(job.model, job.data, job.task, self.batch_size)

    def teacher(self) -> dict[str, Any]:
        """The teacher's scores, origin and size."""
        job = self.job
        origin = {"path": job.source, "sha256": weights_sha256(job.model), "size_bytes": size_bytes(job.model)}
        return dev_scores(self.teacher_logits, job.data, job.task) | origin

    def student(self, student: PreTrainedModel) -> dict[str, Any]:
        """A student's scores, alone, and its closeness to the teacher."""
        job = self.job
        logits = dev_logits(student, job.data, job.task, self.batch_size)
        split = job.task.dev_splits[0]
        return dev_scores(logits, job.data, job.task) | closeness(logits[split], self.teacher_logits[split], job.task)

    def assisted(self, student: PreTrainedModel, site: Site) -> dict[str, Any]:
        """A student's scores with the teacher inside, under names that say so."""
        job = self.job
        logits = assisted_logits(student, job.model, site, job.data.dev, job.data.collate, self.batch_size)
        scores = job.task.measure(logits, np.asarray(job.data.dev["labels"]))
        return {f"assisted_{name}": value for name, value in scores.items()} | {"site": site.value}


class _Recorder:
    """Gathers `metrics.json` while the run goes on, in a file of its own so that a resumed run measures nothing twice.

    Raises:
        TrituneError: the folder holds a run of another recipe or teacher.
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
            "steps": {phase.name: phase.steps for phase in phases},
        }
        self.finished = read_json(job.output / METRICS)
        self._check(self.finished or read_json(self.path))

    def _check(self, earlier: dict[str, Any]) -> None:
        """Refuse to go on with a run of other making."""
        if not earlier:
            return
        recipe = (self.job.output / RECIPE_FILE).read_text(encoding="utf-8")
        if recipe != to_yaml(self.job.recipe) or any(earlier[key] != self.metrics[key] for key in ("task", "steps")):
            raise TrituneError(f"{self.job.output}: --resume: the run there has another task or recipe ({RECIPE_FILE})")
        if earlier["teacher"]["sha256"] != weights_sha256(self.job.model):
            raise TrituneError(f"{self.job.output}: --resume: the run there has another teacher")

    def begin(self, untrained: PreTrainedModel, start: PreTrainedModel | None, start_source: str) -> None:
        """Measure what there is before the training, unless a resumed run did."""
        self.measure = _Measure(self.job)
        if earlier := read_json(self.path):
            self.metrics = earlier
            return
        self.metrics |= {"teacher": self.measure.teacher(), "untrained": self.measure.student(untrained)}
        if start is not None:
            self.metrics["start"] = {
                "path": start_source,
                "sha256": weights_sha256(start),
                **self.measure.student(start),
            }
        self.metrics["seconds"] = 0.0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.job.output / RECIPE_FILE, to_yaml(self.job.recipe))
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
        folder = self.job.output / BEST
        kept = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).to(student.device)
        return self.metrics | {
            "best": self.measure.student(kept) | {"step": best.step},
            "last": self.measure.student(student) | {"step": self.last_step},
            "size_bytes": size_bytes(student),
        }


def _train(job: Job, student: PreTrainedModel, phase: Phase, recorder: _Recorder, is_last: bool) -> BestModel | None:
    """One phase; returns the keeper of the best student in the last one."""
    recipe = job.recipe
    folder = job.output / CHECKPOINTS / phase.name.replace(" ", "_")
    trainer = DistillationTrainer(
        model=student,
        teacher=job.model,
        # Another order of the data in every phase: step two must not begin with the batches that step one saw.
        args=training_arguments(recipe, phase.steps, folder, data_seed=recipe.seed + phase.first_step),
        coefficients=recipe.coefficients(),
        schedule=phase.schedule,
        loss_average=recipe.loss_average,
        optimizer=recipe.optimizer,
        warmup_ratio=recipe.warmup_ratio,
        train_dataset=job.data.splits["train"],
        eval_dataset=job.data.dev,
        data_collator=job.data.collate,
        compute_metrics=metrics_function(job.task),
    )
    best = BestModel(job.output / BEST, job.task.metric, job.tokenizer, recipe, phase.first_step) if is_last else None
    history = History(job.output / HISTORY, phase.name, phase.first_step, trainer.site_name)
    timer = StepTimer()
    started = time.perf_counter()
    train(trainer, phase.name, [history, timer, *([best] if best else [])], trainer.site_name)
    recorder.phase(student, phase, timer, time.perf_counter() - started)
    return best


def metrics_function(task: Task) -> Callable[[EvalPrediction], dict[str, float]]:
    """What Trainer calls with the student's logits to select the best."""
    return lambda prediction: task.measure(prediction.predictions, prediction.label_ids)
