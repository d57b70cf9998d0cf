"""The main job: a teacher, a task and a recipe become a folder with a QAT student and its measurements.

Where the recipe says so, the student's blocks are reconstructed first, see `reconstruction`. Step one trains with the
teacher's tensors plugged in, step two without, each with a fresh optimizer and schedule (Teacher Intervention, EACL
2023, section 4). A recipe without intervention has a single phase.
"""

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, set_seed

from ..checkpoints.prepare import prepare
from ..compute.devices import this_process
from ..distil.layer_map import distilled_layers
from ..distil.losses import trace_fields
from ..distil.reconstruct import Stage
from ..errors import Interrupted, TrituneError
from ..modeling.instrument import instrument
from ..modeling.modes import evaluation_mode
from ..modeling.quantization import Quantization
from ..recipes import Recipe
from .arguments import data_arguments, takes_kernels, training_arguments
from .balance import balance_arguments
from .callbacks import BestModel, History, StepTimer, Watch
from .card import CARD, model_card
from .job import Job, Phase
from .reconstruction import reconstruct_student, restore_student
from .recorder import Recorder
from .resume import StopOnSignal, checkpoints, last_step, train
from .run_folder import BEST, CHECKPOINTS, HISTORY, METRICS, claimed, remove, write_json, write_text
from .teacher_cache import ROW, TeacherCache
from .trainer import DistillationTrainer


def plan(job: Job[Recipe], only: str | None = None) -> list[Phase]:
    """The phases of a job in which the whole student is trained; none where it is only reconstructed.

    Args:
        job: what to work on.
        only: "one" or "two" for a single step.

    Raises:
        TrituneError: `only` names a step of a recipe that has none, `cache_teacher` has no effect in the last phase, or
            `fused_kernels` are not available or have no effect.
    """
    recipe, one = job.recipe, job.recipe.step_one_steps
    if recipe.max_steps == 0 and only is None:
        return []
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
    job: Job[Recipe],
    phases: list[Phase],
    start: PreTrainedModel | None = None,
    start_source: str = "",
    resume: bool = False,
    watch: Callable[[int, float], None] | None = None,
    resumed: Callable[[int, int], None] = lambda step, steps: None,
    reconstructed: Callable[[Stage], None] = lambda stage: None,
) -> dict[str, Any]:
    """Train a student through `phases`, write the run folder, and return its metrics.

    Args:
        job: what to work on.
        phases: from `plan`.
        start: an earlier run's student to start from, changed in place; None quantizes the teacher, or the job's own
            float student.
        start_source: origin of `start`, for the record.
        resume: continue the run in `job.output`, if there is one; the final weights are those of an uninterrupted run.
        watch: called with step and score after every evaluation of the student.
        resumed: called with the last step and the number of steps if a run is continued.
        reconstructed: called after every stage of a reconstruction.

    Returns:
        The contents of `metrics.json`.

    Raises:
        Interrupted: a signal was received; the run can be resumed.
        TrituneError: the recipe's `layers` do not fit the model, the folder belongs to another run, or is not writable.
    """
    process = this_process()
    for model in (job.model, job.float_student):
        model.to(process.device)
    untrained = prepare(
        copy.deepcopy(job.float_student), job.recipe.section(Quantization), _inputs(job, job.recipe.batch_sizes[0])
    )
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
        first_step = phases[-1].first_step if phases else 0
        keeper = BestModel(job.output / BEST, job.task.metric, job.processor, job.recipe, first_step)
        if job.recipe.reconstruct_steps and not (phases and phases[0].first_step):
            _reconstruct(job, student, recorder, keeper, reconstructed)
        for phase in phases:
            callbacks: list[TrainerCallback] = [keeper] if phase is phases[-1] else []
            if watch is not None:
                callbacks.append(Watch(watch, job.task.metric, phase.first_step))
            _train(job, student, phase, recorder, cache, callbacks)
        process.wait_for_everyone()
        if cache is not None:
            recorder.metrics["teacher_cache_bytes"] = cache.used_bytes()
        metrics = recorder.finish(student, keeper.step)
        if process.is_main_process:
            student.save_pretrained(job.output)
            job.processor.save_pretrained(job.output)
            write_text(job.output / CARD, str(model_card(metrics, job.task, job.recipe, str(job.output))))
            write_json(job.output / METRICS, metrics)
            remove(job.output / CHECKPOINTS)
    return metrics


def _reconstruct(
    job: Job[Recipe], student: PreTrainedModel, recorder: Recorder, keeper: BestModel, told: Callable[[Stage], None]
) -> None:
    """The first phase; its student competes for the best."""
    if "reconstructed" in recorder.metrics:
        restore_student(job, student)
    else:
        recorder.reconstruction(student, reconstruct_student(job, student, told))
    if keeper.step is None:
        value = recorder.selecting_value(student)
        if this_process().is_main_process:
            keeper.consider(student, value, step=0)


def _inputs(job: Job[Recipe], count: int) -> dict[str, torch.Tensor]:
    """The first `count` training rows as a batch without labels, on the model's device."""
    rows = job.data.splits["train"]
    batch = job.data.collate([rows[i] for i in range(min(len(rows), count))])
    return {name: tensor.to(job.model.device) for name, tensor in batch.items() if name != "labels"}


def _check_kernels(recipe: Recipe) -> None:
    if not recipe.bf16:
        raise TrituneError(
            "fused_kernels would change nothing: bf16 auto is float32 here; set bf16=true, or leave it out"
        )
    device = this_process().device
    if not takes_kernels(recipe.fused_kernels, recipe.has_kernels(), device):
        raise TrituneError(f"fused_kernels would change nothing: they are for a CPU, and this is {device.type}")


def _check_cache(job: Job[Recipe], phase: Phase) -> None:
    if not job.task.head.keeps_answers:
        raise TrituneError(f"cache_teacher: not supported for {job.task.head.name}, whose outputs differ in length")
    recipe, rows = job.recipe, len(job.data.splits["train"])
    visits = phase.steps * _rows_per_step(recipe)
    if phase.schedule is not None or visits <= rows:
        raise TrituneError(
            f"cache_teacher would change nothing: {phase.name} sees no row a second time without intervention "
            f"({visits} visits, {rows} rows)"
        )
    if recipe.image_augmentation == "standard":
        raise TrituneError(
            "cache_teacher: augmented images differ at every visit; set image_augmentation none, or do without"
        )
    if recipe.padding == "longest" and getattr(job.processor, "padding_side", "right") != "right":
        raise TrituneError("cache_teacher: this tokenizer pads on the left, so it needs padding: max_length")
    if this_process().num_processes > 1:
        raise TrituneError("cache_teacher: only supported in a single process")


def _rows_per_step(recipe: Recipe) -> int:
    """Of one process."""
    return recipe.batch_sizes[0] * recipe.gradient_accumulation_steps


def _teacher_cache(job: Job[Recipe]) -> TeacherCache:
    recipe, rows = job.recipe, job.data.splits["train"]
    fields, teacher = trace_fields(recipe.coefficients()), instrument(job.model)
    batch = _inputs(job, 1)
    with evaluation_mode(job.model), torch.no_grad():
        sample = teacher(**batch, output_trace=fields)
    if fields:
        sample.trace = sample.trace.mapped(recipe.layer_map)
    length = None
    if "input_ids" in batch:
        length = recipe.max_length if recipe.padding == "max_length" else max(map(len, rows["input_ids"]))
    layers = distilled_layers(recipe.distil_layers, len(sample.trace.layers)) if fields else None
    return TeacherCache(job.output / CHECKPOINTS / "teacher", len(rows), length, fields, sample, layers)


def _train(
    job: Job[Recipe],
    student: PreTrainedModel,
    phase: Phase,
    recorder: Recorder,
    cache: TeacherCache | None,
    callbacks: list[TrainerCallback],
) -> None:
    recipe, rows = job.recipe, job.data.splits["train"]
    # Another order of the data in every phase: step two must not begin with the batches of step one.
    data_seed = recipe.seed + phase.first_step
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
        student_dropout=recipe.student_dropout,
        teacher_cache=cache,
        fused_kernels=recorder.takes_kernels,
        train_dataset=(
            job.data.training_rows(recipe.image_augmentation, data_seed)
            if cache is None
            else rows.add_column(ROW, range(len(rows)))
        ),
        **data_arguments(job, student),
        **balance_arguments(job, data_seed),
    )
    history = History(job.output / HISTORY, phase.name, phase.first_step, trainer.site_name)
    timer, started = StepTimer(), time.perf_counter()
    left = phase.steps - last_step(job.output, {phase.name: 0})
    try:
        if cache is not None and phase.schedule is None and left * _rows_per_step(recipe) >= len(rows):
            stop = StopOnSignal()
            with stop.listening():
                trainer.fill_teacher_cache(lambda: stop.asked)
        train(trainer, phase.name, [history, timer, *callbacks], trainer.site_name)
    except Interrupted:
        recorder.spend(time.perf_counter() - started)
        raise
    recorder.phase(student, phase, trainer.layer_map, timer, time.perf_counter() - started)
