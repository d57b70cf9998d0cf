"""The main job: a teacher, a task and a recipe become a folder with a QAT student and what was measured on the way.

Step one trains with the teacher's tensors plugged in, step two without, each with a fresh optimizer and schedule
(Teacher Intervention, EACL 2023, section 4). A recipe without intervention has a single phase.
"""

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import EvalPrediction, PreTrainedModel, set_seed

from ..checkpoints.prepare import prepare
from ..compute.devices import this_process
from ..distil.layer_map import distilled_layers
from ..distil.losses import trace_fields
from ..errors import TrituneError
from ..modeling.instrument import instrument
from ..modeling.modes import evaluation_mode
from ..modeling.quantization import Quantization
from ..recipes import Recipe
from ..tasks.heads import EncodedData
from .arguments import takes_kernels, training_arguments
from .callbacks import BestModel, History, StepTimer, Watch
from .card import CARD, model_card
from .job import Job, Phase
from .recorder import Recorder
from .resume import checkpoints, last_step, train
from .run_folder import BEST, CHECKPOINTS, HISTORY, METRICS, claimed, remove, write_json, write_text
from .teacher_cache import ROW, TeacherCache
from .trainer import DistillationTrainer


def plan(job: Job, only: str | None = None) -> list[Phase]:
    """The phases of a job.

    Args:
        job: what to work on.
        only: "one" or "two" to make one step alone.

    Raises:
        TrituneError: `only` names a step of a recipe that has none, or `cache_teacher` can do nothing for the last one,
            or `fused_kernels` cannot be had or would change nothing.
    """
    recipe, one = job.recipe, job.recipe.step_one_steps
    if one is None:
        if only:
            raise TrituneError(f"--phase {only}: recipe {recipe.name} has no schedule, so it has one phase only")
        phases = [Phase("training", recipe.max_steps, None)]
    else:
        two = recipe.max_steps - one
        both = {"one": Phase("step one", one, recipe.schedule), "two": Phase("step two", two, None, first_step=one)}
        phases = [both[only]] if only else list(both.values())
    if recipe.cache_teacher:
        _check_cache(job, phases[-1])
    if recipe.fused_kernels:
        _check_kernels(recipe)
    return phases


def run(
    job: Job,
    phases: list[Phase],
    start: PreTrainedModel | None = None,
    start_source: str = "",
    resume: bool = False,
    watch: Callable[[int, float], None] | None = None,
    resumed: Callable[[int, int], None] = lambda step, steps: None,
) -> dict[str, Any]:
    """Train a student through `phases`, write the run folder, and return its metrics.

    Args:
        job: what to work on.
        phases: from `plan`.
        start: an earlier run's student to go on from, changed in place; None takes the teacher, or the job's own float
            student, quantized.
        start_source: where `start` came from, for the record.
        resume: go on with the run that lies in `job.output`, if one does; the final weights are those of a run that
            was never stopped.
        watch: told the step and the student's score after every evaluation, in place of bars.
        resumed: of a run that goes on, told after which step of how many.

    Returns:
        What `metrics.json` holds.

    Raises:
        Interrupted: a signal came; the run can be resumed.
        TrituneError: the recipe's `layers` do not fit the model, the folder belongs to another run, or it cannot be
            written to.
    """
    process = this_process()
    for model in (job.model, job.float_student):
        model.to(process.device)
    untrained = prepare(copy.deepcopy(job.float_student), job.recipe.section(Quantization), _sample(job))
    student = untrained if start is None else start.to(process.device)
    with claimed(job.output, resume):
        recorder = Recorder(job, phases)
        if recorder.finished:
            remove(job.output / CHECKPOINTS)
            return recorder.finished
        step = last_step(job.output, {phase.name: phase.first_step for phase in phases})
        if recorder.begun:
            resumed(step, recorder.last_step)
        cache = _teacher_cache(job) if job.recipe.cache_teacher else None
        recorder.begin(untrained, start, start_source, step)
        set_seed(job.recipe.seed)
        best = None
        for phase in phases:
            best = _train(job, student, phase, recorder, cache, watch, is_last=phase is phases[-1])
        process.wait_for_everyone()
        if cache is not None:
            recorder.metrics["teacher_cache_bytes"] = cache.used_bytes()
        metrics = recorder.finish(student, best)
        if process.is_main_process:
            student.save_pretrained(job.output)
            job.processor.save_pretrained(job.output)
            write_text(job.output / CARD, str(model_card(metrics, job.task, job.recipe, str(job.output))))
            write_json(job.output / METRICS, metrics)
            remove(job.output / CHECKPOINTS)
    return metrics


def _sample(job: Job) -> dict[str, torch.Tensor]:
    """The first rows of the training data: learned ranges of activations start from them, on every device alike."""
    rows = job.data.splits["train"]
    batch = job.data.collate([rows[i] for i in range(min(len(rows), job.recipe.per_device_train_batch_size))])
    batch.pop("labels", None)
    return batch.to(job.model.device)


def _check_kernels(recipe: Recipe) -> None:
    if not recipe.bf16:
        raise TrituneError(
            "fused_kernels would change nothing: bf16 auto is float32 here; take bf16=true, or leave it out"
        )
    device = this_process().device
    if not takes_kernels(recipe.fused_kernels, recipe.has_kernels(), device):
        raise TrituneError(f"fused_kernels would change nothing: they are for a CPU, and this is {device.type}")


def _check_cache(job: Job, phase: Phase) -> None:
    if not job.task.head.keeps_answers:
        raise TrituneError(f"cache_teacher: not for {job.task.head.name} yet, whose answers differ in length")
    recipe, rows = job.recipe, len(job.data.splits["train"])
    visits = phase.steps * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
    if phase.schedule is not None or visits <= rows:
        raise TrituneError(
            f"cache_teacher would change nothing: {phase.name} comes to no row a second time without intervention "
            f"({visits} visits, {rows} rows)"
        )
    if recipe.image_augmentation == "standard":
        raise TrituneError("cache_teacher: no image is seen twice alike; take image_augmentation none, or do without")
    if recipe.padding == "longest" and getattr(job.processor, "padding_side", "right") != "right":
        raise TrituneError("cache_teacher: this tokenizer pads on the left, so it needs padding: max_length")
    if this_process().num_processes > 1:
        raise TrituneError("cache_teacher: only for a single process")


def _teacher_cache(job: Job) -> TeacherCache:
    recipe, rows = job.recipe, job.data.splits["train"]
    fields, teacher = trace_fields(recipe.coefficients()), instrument(job.model)
    batch = job.data.collate([rows[0]])
    batch.pop("labels", None)
    with evaluation_mode(job.model), torch.no_grad():
        sample = teacher(**batch.to(job.model.device), output_trace=fields)
    if fields:
        sample.trace = sample.trace.mapped(recipe.layer_map)
    length = None
    if "input_ids" in batch:
        length = recipe.max_length if recipe.padding == "max_length" else max(map(len, rows["input_ids"]))
    layers = distilled_layers(recipe.distil_layers, len(sample.trace.layers)) if fields else None
    return TeacherCache(job.output / CHECKPOINTS / "teacher", len(rows), length, fields, sample, layers)


def _train(
    job: Job,
    student: PreTrainedModel,
    phase: Phase,
    recorder: Recorder,
    cache: TeacherCache | None,
    watch: Callable[[int, float], None] | None,
    is_last: bool,
) -> BestModel | None:
    """One phase; returns the keeper of the best student in the last one."""
    recipe = job.recipe
    # Another order of the data in every phase: step two must not begin with the batches that step one saw.
    data_seed = recipe.seed + phase.first_step
    rows = job.data.training_rows(recipe.image_augmentation, data_seed)
    trainer = DistillationTrainer(
        model=student,
        teacher=job.model,
        args=training_arguments(recipe, phase.steps, checkpoints(job.output, phase.name), data_seed),
        coefficients=recipe.coefficients(),
        schedule=phase.schedule,
        loss_average=recipe.loss_average,
        temperature=recipe.temperature,
        distil_layers=recipe.distil_layers,
        layer_map=recipe.layer_map,
        optimizer=recipe.optimizer,
        warmup_ratio=recipe.warmup_ratio,
        learned_scale_learning_rate=recipe.learned_scale_learning_rate,
        teacher_cache=cache,
        fused_kernels=recorder.takes_kernels,
        train_dataset=rows if cache is None else rows.add_column(ROW, range(len(rows))),
        eval_dataset=job.data.dev,
        data_collator=job.data.collate,
        compute_metrics=metrics_function(job.data),
        head=job.task.head,
    )
    best = BestModel(job.output / BEST, job.task.metric, job.processor, recipe, phase.first_step) if is_last else None
    history = History(job.output / HISTORY, phase.name, phase.first_step, trainer.site_name)
    timer = StepTimer()
    watching = [Watch(watch, job.task.metric, phase.first_step)] if watch else []
    started = time.perf_counter()
    callbacks = [history, timer, *([best] if best else []), *watching]
    train(trainer, phase.name, callbacks, trainer.site_name, bar=watch is None)
    recorder.phase(student, phase, timer, time.perf_counter() - started)
    return best


def metrics_function(data: EncodedData) -> Callable[[EvalPrediction], dict[str, float]]:
    """What Trainer calls with the student's logits to select the best."""
    return lambda prediction: data.measure(prediction.predictions)
