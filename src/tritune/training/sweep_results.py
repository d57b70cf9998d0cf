"""The results of a sweep: a table of runs, a figure, and the best recipe."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from statistics import fmean, stdev
from typing import Any

from filelock import FileLock

from ..analysis.plots import save
from ..recipes import Range, Sweep, label, to_yaml
from .run_folder import write_text
from .study import Worker
from .sweep import VALUES, SweepJob, finished_runs, open_queues
from .sweep_plots import sweep_figure

CSV, BEST_RECIPE = "sweep.csv", "best.yaml"
FIGURES = ("sweep.svg", "sweep.png")
_LOCK = ".results.lock"
_AFTER = ("seed", "state", "last", "best", "steps", "seconds", "reason")


@dataclass(frozen=True)
class Point:
    """One point of a sweep and its scores.

    Attributes:
        sweep: the sweep of the point.
        values: values of the keys of the space.
        scores: scores of the finished seeds, by the sweep's objective.
        state: `complete`, `pruned`, or `failed`; `unfinished` while seeds are missing.
        reason: reason of a failure.
    """

    sweep: Sweep
    values: Mapping[str, Any]
    scores: tuple[float, ...]
    state: str
    reason: str | None = None

    @property
    def mean(self) -> float | None:
        """Mean of the scores; None before the first."""
        return fmean(self.scores) if self.scores else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds (divided by n - 1); None for fewer than two."""
        return stdev(self.scores) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class Results:
    """The state of a sweep.

    Attributes:
        title: name of the sweep file.
        metric: metric of the task.
        runs: from `finished_runs`.
        points: points of these runs.
        total: number of runs in the end.
    """

    title: str
    metric: str
    runs: list[dict[str, Any]]
    points: list[Point]
    total: int

    @property
    def best(self) -> Point | None:
        """The complete point with the highest mean, the first of equal ones; None if there is none."""
        complete = [point for point in self.points if point.state == "complete"]
        return max(complete, key=lambda point: fmean(point.scores), default=None)

    def open(self) -> int:
        """Number of runs that are still to be made."""
        return self.total - sum(
            len(point.scores if point.state == "unfinished" else point.sweep.seeds) for point in self.points
        )


def read_results(job: SweepJob) -> Results:
    """The state of a sweep according to its storage, whichever machine made the runs."""
    runs = list(finished_runs(job.sweeps, open_queues(job, Worker(job.output))))
    return Results(job.title, job.job.task.metric, runs, _points(job.sweeps, runs), job.runs())


def write_results(job: SweepJob, final: bool = True) -> Results:
    """Write `sweep.csv`, and with `final` the figure and the best recipe; returns the results."""
    with FileLock(job.output / _LOCK):
        results = read_results(job)
        write_text(job.output / CSV, to_csv(results))
        best = results.best
        if not final or best is None:
            return results
        write_text(job.output / BEST_RECIPE, best_recipe(results, best))
        drawn = [(point.sweep.name, point.values, point.scores) for point in results.points if point.scores]
        figure = sweep_figure(drawn, results.metric, _log_keys(job.sweeps))
        for name in FIGURES:
            save(figure, job.output / name)
    return results


def to_csv(results: Results) -> str:
    """One row per run: sweep, point, every key that any sweep tries, seed, state, scores, steps, seconds and reason."""
    sweeps = {point.sweep.name: point.sweep for point in results.points}
    keys = list(dict.fromkeys(key for run in results.runs for key in run[VALUES]))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["sweep", "point", *keys, *_AFTER])
    for run in results.runs:
        recipe = sweeps[run["sweep"]].point(run[VALUES], run["seed"])
        values = (_cell(getattr(recipe, key)) for key in keys)
        writer.writerow([run["sweep"], run["point"], *values, *(run[name] for name in _AFTER)])
    return file.getvalue()


def best_recipe(results: Results, best: Point) -> str:
    """The recipe of the `best` point, with the first of its seeds, as YAML for `tritune train --recipe`."""
    recipe = best.sweep.point(best.values, best.sweep.seeds[0])
    spread = f" ± {best.deviation:.4f}" if best.deviation is not None else ""
    score = f"{results.metric} {fmean(best.scores):.4f}{spread} over {len(best.scores)} seeds"
    found = f"best of the sweep {results.title}: {label(best.values)} ({score})"
    return to_yaml(replace(recipe, name=f"{results.title}-best", description=found))


def _points(sweeps: list[Sweep], runs: Iterable[dict[str, Any]]) -> list[Point]:
    by_name = {sweep.name: sweep for sweep in sweeps}
    groups = groupby(runs, key=itemgetter("sweep", "point"))
    return [_point(by_name[name], list(group)) for (name, _), group in groups]


def _point(sweep: Sweep, runs: list[dict[str, Any]]) -> Point:
    complete = [run for run in runs if run["state"] == "complete"]
    ended = next((run for run in runs if run["state"] != "complete"), None)
    state = ended["state"] if ended else "complete" if len(complete) == len(sweep.seeds) else "unfinished"
    scores = tuple(run[sweep.objective] for run in complete)
    return Point(sweep, runs[0][VALUES], scores, state, ended["reason"] if ended else None)


def _log_keys(sweeps: list[Sweep]) -> set[str]:
    spaces = (item for sweep in sweeps for item in sweep.space.items())
    return {key for key, options in spaces if isinstance(options, Range) and options.log}


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, tuple | list | dict | bool) or value is None else value
