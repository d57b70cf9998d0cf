"""The tables of the page, with their numbers formatted."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import readable
from ..training.versions import library_versions
from .runs import MODELS, Run

NOTHING = "–"
_CLOSENESS = ("kl_to_teacher", "mse_to_teacher", "cosine_to_teacher")
_NO_SCORES = ("path", "sha256", "size_bytes", "step", "site")
_GROUP_NOTES = {
    "best": "chosen on this dev set, so a little too good",
    "last": "after the last step; nothing was chosen",
    "assisted": "the teacher's tensors inside: not a score of the student",
}


class Cell(NamedTuple):
    """A number or word, and a smaller note below it."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table: its name, then a cell for every further column."""

    name: Cell
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """Rows under a header, in groups; a group without a name has no heading."""

    header: list[str]
    groups: dict[str, list[Row]]


def words(name: str) -> str:
    """A key with spaces.

    >>> words("mean_accuracy_f1")
    'mean accuracy f1'
    """
    return name.replace("_", " ")


def percent(value: float) -> str:
    """A score times 100.

    >>> percent(0.75849)
    '75.8'
    """
    return f"{100 * value:.1f}"


def summary(runs: Sequence[Run]) -> Table:
    """One row per run: the selecting metric of every model of the run, steps, seconds and sizes."""
    models = [model for model in MODELS if model == "last" or any(model in run.metrics for run in runs)]
    assisted = any("assisted" in run.metrics for run in runs)
    header = ["run", *(MODELS[model] for model in models), *["assisted"] * assisted]
    rows = []
    for run in runs:
        cells = [_score_cell(run, model) for model in models]
        if assisted:
            cells.append(_assisted_cell(run))
        rows.append(Row(Cell(run.name, "" if run.finished else "unfinished"), [*cells, *_cost_cells(run)]))
    return Table([*header, "steps", "seconds", "s per step", "size*"], {"": rows})


def _score_cell(run: Run, model: str) -> Cell:
    if model not in run.metrics:
        waiting = model == "last" and not run.finished
        return Cell(NOTHING, f"at step {run.last_step:,} of {run.steps:,}" if waiting else "")
    scores = run.metrics[model]
    return Cell(percent(scores[run.metrics["metric"]]), f"step {scores['step']}" if "step" in scores else "")


def _assisted_cell(run: Run) -> Cell:
    if "assisted" not in run.metrics:
        return Cell(NOTHING)
    scores = run.metrics["assisted"]
    note = f"teacher's {scores.get('site')} inside, step {scores.get('step')}"
    return Cell(percent(scores[f"assisted_{run.metrics['metric']}"]), note)


def _cost_cells(run: Run) -> list[Cell]:
    metrics, phases = run.metrics, run.metrics["steps"]
    split = " + ".join(f"{count:,}" for count in phases.values()) if len(phases) > 1 else ""
    seconds, pace, bytes_ = (metrics.get(key) for key in ("seconds", "seconds_per_step", "size_bytes"))
    teacher_bytes = metrics.get("teacher", {}).get("size_bytes")
    compared = (
        f"teacher {readable(teacher_bytes)}, {teacher_bytes / bytes_:.1f} times" if teacher_bytes and bytes_ else ""
    )
    return [
        Cell(f"{run.steps:,}", split),
        Cell(f"{seconds:,.0f}" if seconds and run.finished else NOTHING),
        Cell(f"{pace:.2f}" if pace else NOTHING),
        Cell(readable(bytes_), compared) if bytes_ else Cell(NOTHING),
    ]


def scores(runs: Sequence[Run]) -> Table:
    """Every score of every model, grouped by model, one row per run; runs with the same scores share a row."""
    flat = {model: [_flat(run.metrics.get(model)) for run in runs] for model in (*MODELS, "assisted")}
    columns = list(dict.fromkeys(key for parts in flat.values() for part in parts for key in part))
    metric = runs[0].metrics["metric"]
    columns.sort(key=lambda key: (key != metric, key in _CLOSENESS))
    groups = {}
    for model, parts in flat.items():
        labels = [_label(run, model) for run in runs]
        rows = [
            Row(Cell(*names), [_formatted(key, part.get(key)) for key in columns])
            for names, part in _shared(runs, labels, parts)
            if part
        ]
        if rows:
            held_out = model == "best" and all(run.recipe.get("select_on") == "held_out" for run in runs)
            note = "" if held_out or model not in _GROUP_NOTES else f" ({_GROUP_NOTES[model]})"
            groups[MODELS.get(model, model) + note] = rows
    return Table(["", *map(words, columns)], groups)


def reconstruction(runs: Sequence[Run]) -> Table:
    """The error of every part before and after its reconstruction, one column per run; without groups if none had one.

    A row without numbers of its own, in a run of another depth, stays empty.
    """
    done = {run.name: run.metrics["reconstruction"]["stages"] for run in runs if "reconstruction" in run.metrics}
    parts = list(dict.fromkeys(stage["name"] for stages in done.values() for stage in stages))
    errors = {
        (name, stage["name"]): f"{stage['before']:.3g} → {stage['after']:.3g}"
        for name, stages in done.items()
        for stage in stages
    }
    rows = [Row(Cell(part), [Cell(errors.get((name, part), "")) for name in done]) for part in parts]
    return Table(["part", *done], {"": rows} if rows else {})


def _label(run: Run, model: str) -> str:
    values = run.metrics.get(model, {})
    site = f"teacher's {values['site']} inside, " if "site" in values else ""
    return f"{site}step {values['step']}" if "step" in values else ""


def _shared(
    runs: Sequence[Run], labels: list[str], parts: list[dict[str, float]]
) -> Iterable[tuple[tuple[str, str], dict[str, float]]]:
    """Runs with the same values under one name."""
    groups: dict[tuple[str, frozenset[tuple[str, float]]], list[str]] = {}
    for run, label, part in zip(runs, labels, parts, strict=True):
        groups.setdefault((label, frozenset(part.items())), []).append(run.name)
    for (label, values), names in groups.items():
        yield ("all runs" if len(names) == len(runs) > 1 else ", ".join(names), label), dict(values)


def _flat(values: dict[str, Any] | None) -> dict[str, float]:
    """The scores among a model's values; those of a further split under `metric, split`."""
    flat: dict[str, float] = {}
    for key, value in (values or {}).items():
        if isinstance(value, dict):
            flat |= {f"{part}, {key}": number for part, number in value.items() if isinstance(number, float | int)}
        elif key not in _NO_SCORES and isinstance(value, float | int):
            flat[key.removeprefix("assisted_")] = value
    return flat


def _formatted(key: str, value: float | None) -> Cell:
    if value is None:
        return Cell("")
    return Cell(f"{value:.4f}" if key in _CLOSENESS else percent(value))


def facts(runs: Sequence[Run]) -> Table:
    """Everything else that is known about each run, one column per run."""
    kinds: dict[str, Callable[[Run], str]] = {
        "recipe": lambda run: run.metrics["recipe"],
        "seed": lambda run: str(run.metrics["seed"]),
        "precision": lambda run: str(run.metrics.get("precision", "")),
        "steps": lambda run: ", ".join(f"{phase}: {count:,}" for phase, count in run.metrics["steps"].items()),
        "resumed after step": lambda run: ", ".join(map(str, run.metrics.get("resumed", ()))),
        "rows": lambda run: _rows(run.metrics.get("rows", {})),
        "folder": lambda run: str(run.folder),
        "teacher": lambda run: str(run.metrics.get("teacher", {}).get("path", "")),
        "teacher's weights, sha256": lambda run: str(run.metrics.get("teacher", {}).get("sha256", ""))[:12],
        "started from": lambda run: str(run.metrics.get("start", {}).get("path", "")),
        "base": lambda run: str(run.metrics.get("base", "")),
        "teacher's size, bytes": lambda run: _whole(run.metrics.get("teacher", {}).get("size_bytes")),
        "size, bytes": lambda run: _whole(run.metrics.get("size_bytes")),
        "teacher cache, bytes": lambda run: _whole(run.metrics.get("teacher_cache_bytes")),
    }
    return _side_by_side(runs, {name: [fact(run) for run in runs] for name, fact in kinds.items()})


def _rows(record: dict[str, Any]) -> str:
    """How many rows each split has."""
    return ", ".join(f"{split}: {rows['read']['count']:,}" for split, rows in record.items())


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,}"


def versions(runs: Sequence[Run]) -> Table:
    """The library versions that made the page, and those recorded by each run."""
    here = library_versions()
    trained = [known if isinstance(known := run.metrics.get("versions"), dict) else {} for run in runs]
    rows = [
        Row(Cell(name), [Cell(here[name]), *(Cell(str(known.get(name, NOTHING))) for known in trained)])
        for name in here
    ]
    return Table(["library", "this page", *(run.name for run in runs)], {"": rows})


def recipe_differences(runs: Sequence[Run]) -> Table:
    """The keys in which recipes differ, one column per run; no rows if they are the same."""
    keys = dict.fromkeys(key for run in runs for key in run.recipe)
    values = {key: [_yaml(run.recipe[key]) if key in run.recipe else "" for run in runs] for key in keys}
    return _side_by_side(runs, {key: row for key, row in values.items() if len(set(row)) > 1})


def analysis_numbers(runs: Sequence[Run], name: str) -> Table:
    """The numbers of one analysis, one column per run that has it."""
    having = [run for run in runs if name in run.analyses]
    keys = dict.fromkeys(key for run in having for key in run.analyses[name].numbers)
    return _side_by_side(having, {key: [run.analyses[name].numbers.get(key, "") for run in having] for key in keys})


def _side_by_side(runs: Sequence[Run], rows: dict[str, list[str]]) -> Table:
    """Names with a value for each run; a name that no run has a value for is left out."""
    kept = [Row(Cell(name), [Cell(value or NOTHING) for value in row]) for name, row in rows.items() if any(row)]
    return Table(["", *(run.name for run in runs)], {"": kept})


def _yaml(value: Any) -> str:
    """A recipe's value in YAML.

    >>> _yaml(None), _yaml(True), _yaml(2e-5), _yaml([1, 2])
    ('null', 'true', '2e-05', '[1, 2]')
    """
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def span_of(history: Sequence[dict[str, Any]], key: str) -> str:
    """The first and last finite value of a curve, in words; empty where there is none."""
    points = [(row["step"], row[key]) for row in history if key in row and math.isfinite(row[key])]
    if not points:
        return ""
    (first, start), (last, end) = points[0], points[-1]
    return f"{start:.4g} at step {first}" + (f", {end:.4g} at step {last}" if last != first else "")
