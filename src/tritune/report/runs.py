"""Reads run folders: distilled students, finished or not, and fine-tuned teachers.

Everything that the page relies on is checked here, so that a damaged file gives one line that names it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..analysis.plots import Span, schedule_spans
from ..distil.schedule import SCHEDULES
from ..errors import TrituneError, shown
from ..recipes import RECIPE_FILE
from ..tasks.data.rows_record import selecting_rows
from ..tasks.registry import get_task
from ..tasks.task_file import TASK_FILE
from ..training.run_folder import BEST, CHECKPOINTS, DEMO, HISTORY, METRICS
from .analyses import Analysis, read_analyses
from .files import is_number, read_object, read_text

MODELS = {
    "teacher": "teacher",
    "untrained": "quantized, untrained",
    "start": "start",
    "reconstructed": "reconstructed",
    "best": "best",
    "last": "last",
}
_SELECTION = "selection.json"
_NOT_A_RUN = "not a run folder: it has no metrics.json"


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        name: shown on the page.
        folder: as given.
        metrics: `metrics.json`, or as much of it as an unfinished run has.
        history: the rows of `history.jsonl`.
        recipe: `recipe.yaml` as a mapping.
        recipe_text: the text of that file.
        analyses: by name.
        finished: whether the run was completed.
    """

    name: str
    folder: Path
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    recipe: dict[str, Any]
    recipe_text: str
    analyses: dict[str, Analysis]
    finished: bool

    @property
    def is_student(self) -> bool:
        """Whether it is a distilled student; otherwise it is a fine-tuned teacher."""
        return _is_student(self.metrics)

    @property
    def steps(self) -> int:
        """Of the whole plan."""
        return sum(self.metrics["steps"].values())

    @property
    def last_step(self) -> int:
        """The last logged step."""
        return self.history[-1]["step"] if self.history else 0

    @property
    def spans(self) -> list[Span]:
        """The intervals of steps with the teacher's tensors inside."""
        schedule, steps = self.recipe.get("schedule"), self.metrics["steps"].get("step one", 0)
        if not isinstance(schedule, str) or schedule not in SCHEDULES:
            return []
        spans = schedule_spans(schedule, steps, self.metrics["seed"])
        return [(before, min(last, self.last_step), site) for before, last, site in spans if before < self.last_step]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in `folders`; the folder of a demo stands for its students.

    Raises:
        TrituneError: a folder holds no run, a file in it cannot be read or is not what a run writes, or the runs cannot
            be compared: they are of two tasks, or of students and teachers.
    """
    places = [place for folder in folders for place in _places(folder)]
    resolved = [place.resolve() for place in places]
    for index, place in enumerate(places):
        if resolved[index] in resolved[:index]:
            raise TrituneError(f"{place}: given twice")
    short = [place.name for place in resolved]
    names = [name if short.count(name) == 1 else str(place) for name, place in zip(short, places, strict=True)]
    runs = [read_run(place, name) for place, name in zip(places, names, strict=True)]
    first = runs[0]
    for run in runs:
        if run.metrics["task"] != first.metrics["task"]:
            raise TrituneError(
                f"{run.folder}: its task is {run.metrics['task']}, that of {first.folder} is {first.metrics['task']}; "
                "a report is about one task"
            )
        if _dev_data(run.metrics) != _dev_data(first.metrics):
            raise TrituneError(
                f"{run.folder}: scored on other data than {first.folder} ({TASK_FILE}); a report is about one task"
            )
        if run.is_student != first.is_student:
            teacher = first if run.is_student else run
            raise TrituneError(
                f"{teacher.folder}: a teacher's fine-tuning, which has no place among students; their report shows "
                "their teacher's score anyway. Report it separately"
            )
    return runs


def other_dev_rows(runs: Sequence[Run]) -> list[str]:
    """One line per run that was selected and scored on other dev rows than the first run that recorded its rows."""
    known = [(run, rows) for run in runs if (rows := selecting_rows(run.metrics))]
    return [
        f"{run.name}: selected and scored on {rows['count']} dev rows that are not the {known[0][1]['count']} of "
        f"{known[0][0].name}; their scores do not compare."
        for run, rows in known
        if rows["sha256"] != known[0][1]["sha256"]
    ]


def _dev_data(metrics: dict[str, Any]) -> tuple[Any, ...]:
    """What a run on the user's own files is scored on: its labels and its dev file."""
    data = metrics.get("data")
    if not isinstance(data, dict) or not isinstance(data.get("sha256"), dict):
        return ()
    # Without a dev file its rows are some of the training file's.
    return data.get("labels"), data["sha256"].get("validation") or data["sha256"].get("train")


def read_run(folder: Path, name: str) -> Run:
    """One run folder.

    Raises:
        TrituneError: as for `read_runs`.
    """
    finished = (folder / METRICS).is_file()
    path = folder / METRICS if finished else folder / CHECKPOINTS / METRICS
    if not path.is_file():
        raise TrituneError(f"{folder}: {_NOT_A_RUN}")
    recipe_text, recipe = _read_recipe(folder / RECIPE_FILE)
    metrics = read_object(path)
    if not finished:
        metrics = _unfinished(folder, metrics, recipe, path)
    _check_metrics(metrics, path, finished)
    # A student that is only reconstructed takes no step as a whole.
    history = _read_history(folder / HISTORY, finished) if metrics["steps"] else []
    return Run(name, folder, metrics, history, recipe, recipe_text, read_analyses(folder), finished)


def _places(folder: Path) -> list[Path]:
    """The folder itself, or the students of a demo."""
    if not folder.is_dir():
        raise TrituneError(f"{folder}: {'this is a file, not a run folder' if folder.exists() else 'no such folder'}")
    if (folder / METRICS).is_file() or not (folder / DEMO).is_file():
        return [folder]
    students = read_object(folder / DEMO).get("students")
    if not isinstance(students, dict) or not students:
        raise TrituneError(f"{folder / DEMO}: the demo was not finished; make it again, or give the folder of one run")
    return [folder / name for name in students]


def _unfinished(folder: Path, metrics: dict[str, Any], recipe: dict[str, Any], path: Path) -> dict[str, Any]:
    """The metrics of an unfinished run, completed from its recipe and its best checkpoint so far."""
    if "base_sha256" in metrics:
        metric = metrics.get("metric")  # fine-tuned on a task of the table, it writes none down before it ends
        try:
            metric = metric if isinstance(metric, str) else get_task(str(metrics.get("task"))).metric
        except TrituneError as error:
            raise TrituneError(f"{path}: {error}") from None
        known = {"metric": metric, "recipe": recipe.get("name"), "seed": recipe.get("seed")}
        metrics = known | {"steps": {"fine-tuning": recipe.get("max_steps")}} | metrics
    selection = folder / BEST / _SELECTION
    if selection.is_file():
        best = read_object(selection)
        metric = best.get("metric")
        if not isinstance(metric, str) or metric != metrics.get("metric") or not is_number(best.get("value")):
            raise TrituneError(f"{selection}: not the selection of {path}")
        metrics = metrics | {"best": {metric: best["value"], "step": best.get("step")}}
    return metrics


def _is_student(metrics: dict[str, Any]) -> bool:
    return "base_sha256" not in metrics and "base" not in metrics


def _check_metrics(metrics: dict[str, Any], path: Path, finished: bool) -> None:
    """Check what the page relies on; for a finished run this includes the scores that it begins with."""

    def check(holds: bool, what: str) -> None:
        if not holds:
            raise TrituneError(f"{path}: not what a run writes: {what}")

    for key in ("task", "metric", "recipe"):
        check(isinstance(metrics.get(key), str), f"{key} must be text, got {shown(metrics.get(key))}")
    check(type(metrics.get("seed")) is int, f"seed must be a whole number, got {shown(metrics.get('seed'))}")
    steps = metrics.get("steps")
    check(
        isinstance(steps, dict)
        and bool(steps or "reconstruction" in metrics or not finished)
        and all(type(count) is int for count in steps.values()),
        f"steps must name the length of each phase, got {shown(steps)}",
    )
    for model in MODELS:
        scores = metrics.get(model, {metrics["metric"]: 0})
        check(isinstance(scores, dict), f"{model} must hold scores, got {shown(scores)}")
        check(is_number(scores.get(metrics["metric"])), f"{model} has no {metrics['metric']}")
    assisted = metrics.get("assisted", {f"assisted_{metrics['metric']}": 0})
    check(
        isinstance(assisted, dict) and is_number(assisted.get(f"assisted_{metrics['metric']}")),
        f"assisted has no assisted_{metrics['metric']}",
    )
    for key in ("seconds", "seconds_per_step", "size_bytes"):
        value = metrics.get(key)
        check(value is None or is_number(value), f"{key} must be a number, got {shown(value)}")
    done = metrics.get("reconstruction", {"stages": []})
    check(
        isinstance(done, dict) and isinstance(done.get("stages"), list) and all(map(_is_stage, done["stages"])),
        f"reconstruction must list its stages, got {shown(done)}",
    )
    rows, resumed = metrics.get("rows", {}), metrics.get("resumed", [])
    check(
        isinstance(rows, dict) and all(map(_is_record, rows.values())),
        f"rows must name the rows of each split, got {shown(rows)}",
    )
    check(
        isinstance(resumed, list) and all(type(step) is int for step in resumed),
        f"resumed must be a list of steps, got {shown(resumed)}",
    )
    teacher_size = metrics.get("teacher", {}).get("size_bytes")
    check(teacher_size is None or is_number(teacher_size), f"teacher's size_bytes: {shown(teacher_size)}")
    for model in ("teacher" if _is_student(metrics) else "best", "last"):
        check(model in metrics or not finished, f"the scores of {model} are missing")


def _is_record(rows: Any) -> bool:
    """Whether this looks like a split's record by `rows_record`."""
    read = rows.get("read") if isinstance(rows, dict) else None
    return isinstance(read, dict) and type(read.get("count")) is int


def _is_stage(stage: Any) -> bool:
    return (
        isinstance(stage, dict)
        and isinstance(stage.get("name"), str)
        and all(is_number(stage.get(key)) for key in ("before", "after"))
    )


def _read_history(path: Path, finished: bool) -> list[dict[str, Any]]:
    lines = read_text(path).splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if not finished and number == len(lines):  # a running or killed run may have written half of it
                break
            raise TrituneError(f"{path}, line {number}: not JSON") from None
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            raise TrituneError(f"{path}, line {number}: not a log of a run, which has a step")
        for key, value in row.items():
            if (key == "loss" or key.endswith("_loss") or key.startswith("eval_")) and not is_number(value):
                raise TrituneError(f"{path}, line {number}: {shown(key)} must be a number, got {shown(value)}")
        rows.append(row)
    if not rows:
        raise TrituneError(f"{path}: has no log yet; report the run after its first logged steps")
    return rows


def _read_recipe(path: Path) -> tuple[str, dict[str, Any]]:
    text = read_text(path)
    try:
        values = yaml.safe_load(text)
    except Exception as error:  # PyYAML raises various types for dates and numbers out of range
        mark = getattr(error, "problem_mark", None)
        raise TrituneError(f"{path}{f', line {mark.line + 1}' if mark else ''}: not YAML") from None
    if not isinstance(values, dict):
        raise TrituneError(f"{path}: a recipe is a list of `key: value` lines")
    return text, {str(key): value for key, value in values.items()}
