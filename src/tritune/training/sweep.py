"""Sweeps: every point of a space is trained once per seed, by all processes and machines that share a storage.

A trial of the study is a point; its value is the mean of the task's metric over the seeds. A run's folder is named
after sweep, point and seed, so that any process can continue an interrupted point from its newest checkpoint.
"""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from sqlalchemy.exc import SQLAlchemyError

from ..checkpoints.load import weights_sha256
from ..checkpoints.prepare import prepare
from ..compute.devices import this_process
from ..errors import CannotWriteError, Interrupted, TrituneError, first_line
from ..modeling.quantization import Quantization
from ..progress import Stage, say, stage
from ..recipes import SWEEP_FILE, Range, Recipe, Sweep, label, listed, sweeps_to_yaml
from ..tasks.data.rows_record import other_rows
from ..tasks.registry import Task
from ..tasks.task_file import task_record
from .job import Job, fit, open_job, with_recipe
from .precision import takes_bf16
from .run import plan, run
from .run_folder import CHECKPOINTS, check_free, remove, remove_students, write_text
from .study import DATABASE, REASON, Queue, Taken, Worker, open_storage

TRIALS = "trials"
VALUES = "values"
_MADE_OF, _BF16 = "made_of", "bf16"


class _PointFailed(Exception):
    """The point's trial says why."""


@dataclass(frozen=True)
class SweepJob:
    """What a sweep works on.

    Attributes:
        title: name of the sweep file, and prefix of the studies' names.
        sweeps: the sweeps of the file.
        job: teacher and data; its recipe is that of the first run.
        data: folder of the task's files, or None.
        output: the sweep's folder.
        storage: URL of the studies, see `study.open_storage`.
    """

    title: str
    sweeps: list[Sweep]
    job: Job[Recipe]
    data: Path | None
    output: Path
    storage: str | None

    def folder(self, sweep: Sweep, point: int, seed: int) -> Path:
        """The folder of one run."""
        return self.output / TRIALS / sweep.name / f"{point:03d}" / f"seed-{seed}"

    def runs(self) -> int:
        """Number of runs of all sweeps."""
        return sum(sweep.count() * len(sweep.seeds) for sweep in self.sweeps)

    def steps(self, sweep: Sweep) -> int:
        """Total number of updates of one sweep, estimated from the first option if a sampler chooses."""
        rows = len(self.job.data.splits["train"])
        points = list(sweep.grid()) if sweep.sampler == "grid" else [next(sweep.corners())] * sweep.count()
        recipes = (sweep.point(values, sweep.seeds[0]).resolve(self.job.task, rows) for values in points)
        return len(sweep.seeds) * sum(recipe.max_steps for recipe in recipes)


def open_sweep(
    source: str | Path,
    task: Task,
    data: Path | None,
    title: str,
    sweeps: list[Sweep],
    output: Path,
    storage: str | None = None,
    resume: bool = False,
) -> SweepJob:
    """Read and check everything a sweep needs; nothing is written.

    Args:
        source: folder or hub name of the teacher.
        task: of the table.
        data: folder of the task's original files; None reads the hub.
        title, sweeps: from `load_sweeps`.
        output: the folder to write.
        storage: of the studies, see `study.open_storage`; None is a file in `output`.
        resume: continue a sweep that lies there.

    Raises:
        TrituneError: something is missing, incompatible, or in the way, or the recipe of a point is invalid.
    """
    if this_process().num_processes > 1:
        raise TrituneError("sweep: start one process per device, all with the same --storage, instead of torchrun")
    # A process that has just started creates its study first.
    mark = DATABASE if (output / DATABASE).is_file() else SWEEP_FILE
    check_free(output, overwrite=False, resume=resume, inputs=[source, data] if data else [source], mark=mark)
    first = sweeps[0]
    recipe = first.point(next(first.corners()), first.seeds[0])
    job = open_job(source, task, data, recipe, output / TRIALS / "none")  # every run has a folder of its own
    checked: list[Quantization] = []
    for sweep in sweeps:
        for values in sweep.corners():
            try:
                recipe = fit(job, sweep.point(values, sweep.seeds[0]))
                plan(replace(job, recipe=recipe))
                section = recipe.section(Quantization)
                if section not in checked:
                    prepare(copy.deepcopy(job.model), section)
                    checked.append(section)
            except TrituneError as error:
                raise TrituneError(f"sweep {sweep.name}, {label(values)}: {error}") from None
    return SweepJob(title, sweeps, job, data, output, storage)


def run_sweep(job: SweepJob, stop_after: int | None = None, report: Callable[[], None] = lambda: None) -> int:
    """Train every point that is not done and that no other process works on.

    Args:
        job: from `open_sweep`.
        stop_after: number of points to train; None for all.
        report: called after every point, to write intermediate results.

    Returns:
        The number of points trained by this process.

    Raises:
        Interrupted: a signal was received; the sweep can be resumed.
        TrituneError: the studies belong to another sweep, or a folder is not writable.
    """
    job.output.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    worker = Worker(job.output)
    queues = open_queues(job, worker)
    write_text(job.output / SWEEP_FILE, sweeps_to_yaml(job.title, job.sweeps))
    made: list[int] = []

    def finished() -> int:
        return sum(1 for _ in finished_runs(job.sweeps, queues))

    with _interruptible(), worker.at_work(), stage(job.title, job.runs(), "runs", before=finished()) as shown:
        for sweep, queue in zip(job.sweeps, queues, strict=True):
            objective = _Objective(job, sweep, queue, shown, made)
            while (stop_after is None or len(made) < stop_after) and queue.prepare():
                shown.advance(max(0, finished() - shown.done))
                queue.study.sampler = _sampler(sweep, len(queue.trials()))
                queue.study.optimize(objective, n_trials=1, catch=(Taken, _PointFailed))
                report()
        shown.advance(max(0, finished() - shown.done))
    return len(made)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Report Ctrl-C between two trainings, and a storage that fails, in one line."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("stopped between two trainings; --resume continues from there") from None
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        raise TrituneError(f"the storage of the study failed ({first_line(error)}); --resume continues") from error


def open_queues(job: SweepJob, worker: Worker) -> list[Queue]:
    """The studies of all sweeps, created if they do not exist.

    Raises:
        TrituneError: the storage cannot be opened, or has a study of this name with another space, teacher or task.
    """
    storage = open_storage(job.storage, job.output)
    queues = []
    for sweep in job.sweeps:
        name = f"{job.title}.{sweep.name}"
        study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True, pruner=_pruner(sweep)
        )
        made_of = json.loads(json.dumps(_made_of(job, sweep)))
        earlier = study.user_attrs.get(_MADE_OF)
        if earlier is None:
            study.set_user_attr(_MADE_OF, made_of)
        elif other := _difference(earlier, made_of):
            raise TrituneError(
                f"the study {name} there has {other}; choose another --output or --storage, or another name for the "
                "sweep file"
            )
        if _BF16 not in study.user_attrs:  # what auto means in all its runs, on any machine
            study.set_user_attr(_BF16, takes_bf16())
        queues.append(Queue(study, sweep.count(), worker, _fixed(sweep)))
    return queues


def finished_runs(sweeps: list[Sweep], queues: list[Queue]) -> Iterator[dict[str, Any]]:
    """Every finished run: sweep, point, values, seed, state, scores, steps, seconds and reason."""
    for sweep, queue in zip(sweeps, queues, strict=True):
        for point, trial in queue.trials().items():
            for seed in sweep.seeds:
                if made := trial.user_attrs.get(_attribute(seed)):
                    yield {"sweep": sweep.name, "point": point, VALUES: trial.user_attrs[VALUES], "seed": seed} | made


class _Objective:
    """Optuna's objective: trains the point of a trial with every seed and returns the mean score."""

    def __init__(self, job: SweepJob, sweep: Sweep, queue: Queue, shown: Stage, made: list[int]):
        self.job, self.sweep, self.queue, self.shown, self.made = job, sweep, queue, shown, made

    def __call__(self, trial: optuna.Trial) -> float:
        """The mean over the seeds.

        Raises:
            Taken: another process has this point.
            optuna.TrialPruned: the point was pruned.
            _PointFailed: a run failed; the trial says why.
        """
        point = self.queue.claim(trial)
        values = _suggested(trial, self.sweep)
        trial.set_user_attr(VALUES, values)
        scores = []
        self.made.append(point)
        for index, seed in enumerate(self.sweep.seeds):
            made = trial.user_attrs.get(_attribute(seed)) or self._run(trial, point, values, index)
            scores.append(made[self.sweep.objective])
        return fmean(scores)

    def _run(self, trial: optuna.Trial, point: int, values: dict[str, Any], index: int) -> dict[str, Any]:
        """Make one run and note its results in the trial."""
        seed = self.sweep.seeds[index]
        folder = self.job.folder(self.sweep, point, seed)
        name = f"{self.sweep.name}: {label(values)}, seed {seed}"
        self.shown.note(run=name)
        recipe = self.sweep.point(values, seed).settled(self.queue.study.user_attrs[_BF16])
        job = with_recipe(self.job.job, recipe, self.job.data, folder)
        known: dict[str, Any] = dict.fromkeys(("state", "last", "best", "steps", "seconds", REASON)) | {"steps": 0}

        def watch(step: int, score: float) -> None:
            """Show the newest score, and prune the point if the pruner says so at this step."""
            known.update(last=score, steps=step)
            self.shown.note(step=step, score=score)
            if self.sweep.pruner is not None:
                trial.report(score, index * job.recipe.max_steps + step)
                if trial.should_prune():
                    raise optuna.TrialPruned

        def said_resumed(step: int, steps: int) -> None:
            """Say where an interrupted run goes on."""
            say(f"{name}: resumed: goes on after step {step} of {steps}")

        def note(state: str, **more: Any) -> dict[str, Any]:
            """Keep what is known of the run."""
            made = known | {"state": state, **more}
            trial.set_user_attr(_attribute(seed), made)
            return made

        try:
            metrics = run(job, plan(job), resume=True, watch=watch, resumed=said_resumed)
        except optuna.TrialPruned:
            remove(folder / CHECKPOINTS)
            note("pruned")
            raise
        except (Interrupted, CannotWriteError):
            raise
        except TrituneError as error:
            note("failed", last=None, reason=str(error))
            trial.set_user_attr(REASON, str(error))
            raise _PointFailed from None
        self.shown.advance()
        if not self.sweep.keep_students:
            with suppress(OSError):
                remove_students(folder)
        scores = {key: metrics[key][metrics["metric"]] for key in ("last", "best")}
        return note("complete", **scores, steps=job.recipe.max_steps, seconds=metrics["seconds"])


def _attribute(seed: int) -> str:
    return f"seed {seed}"


def _made_of(job: SweepJob, sweep: Sweep) -> dict[str, Any]:
    """What two processes must have in common to share a study."""
    record = task_record(job.job.task)
    settings = asdict(sweep)
    for key in ("name", "recipe", "trials", "keep_students"):
        del settings[key]
    return {
        "task": job.job.task.name,
        **({"dataset": record} if record else {}),
        "teacher": weights_sha256(job.job.model),
        "rows": job.job.rows,
        "recipe": asdict(sweep.base),
        **settings,
    }


def _difference(earlier: dict[str, Any], made_of: dict[str, Any]) -> str:
    """In what a study differs from a sweep, in words; empty if in nothing."""
    rows = earlier.get("rows", made_of["rows"])  # older studies have no record of them
    if earlier["task"] == made_of["task"] and (found := other_rows(rows, made_of["rows"], "read")):
        return f"other rows ({found})"
    if other := [key for key in made_of if key != "rows" and made_of[key] != earlier.get(key)]:
        return f"another {other[0]}"
    found = other_rows(rows, made_of["rows"], "encoded")
    return f"another tokenizer ({found})" if found else ""


def _pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    if sweep.pruner is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(sweep.pruner_startup_trials, sweep.pruner_warmup_steps)


def _sampler(sweep: Sweep, begun: int) -> optuna.samplers.BaseSampler:
    """Seeded by the number of points so far, so that a resumed sweep does not draw the same ones again."""
    if sweep.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=sweep.sampler_seed + begun)
    return optuna.samplers.RandomSampler(seed=sweep.sampler_seed)


def _fixed(sweep: Sweep) -> Callable[[int], dict[str, Any]]:
    """The Optuna parameters of each point; empty if the sampler chooses them one after another."""
    if sweep.sampler == "tpe":
        return lambda point: {}
    if sweep.sampler == "grid":
        points = [{key: json.dumps(value) for key, value in values.items()} for values in sweep.grid()]
        return points.__getitem__
    # All points of a random search are known beforehand, and the same in every process.
    study = optuna.create_study(sampler=_sampler(sweep, 0))
    points = []
    for _ in range(sweep.count()):
        trial = study.ask()
        _suggested(trial, sweep)
        points.append(trial.params)
    return points.__getitem__


def _suggested(trial: optuna.Trial, sweep: Sweep) -> dict[str, Any]:
    """The values of a trial's point. Entries of a list may be any YAML values; Optuna gets them as JSON."""
    values = {}
    for key, options in sweep.space.items():
        if isinstance(options, Range) and sweep.sampler != "grid":
            values[key] = _number(trial, key, options)
        else:
            values[key] = json.loads(trial.suggest_categorical(key, list(map(json.dumps, listed(options)))))
    return values


def _number(trial: optuna.Trial, key: str, options: Range) -> float | int:
    low, high, step, log = options.low, options.high, options.step, options.log
    if options.is_whole:
        return trial.suggest_int(key, int(low), int(high), step=int(step or 1), log=log)
    return float(f"{trial.suggest_float(key, low, high, step=step, log=log):.12g}")
