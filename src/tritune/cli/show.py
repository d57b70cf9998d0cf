"""What a person sees: tables on stdout, or one JSON object in their place."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_SIZE_NOTE = "* computed from the bit widths"
_SCALES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def show_plan(recipe: Any, phases: list) -> None:
    """The split of the budget in force, on stderr before the training begins."""
    parts = [
        f"{phase.name}: {phase.steps} steps" + (f" ({phase.schedule})" if phase.schedule else "") for phase in phases
    ]
    Console(stderr=True).print(f"{recipe.name}, seed {recipe.seed}: {', '.join(parts)}", highlight=False)


def show_run(metrics: dict[str, Any], folder: Path, as_json: bool) -> None:
    """A distillation's `metrics.json` as a table."""
    if as_json:
        _print_json(metrics)
        return
    name = metrics["metric"]
    table = Table(title=f"{metrics['task']}, {metrics['recipe']}, seed {metrics['seed']}")
    for column in ("model", name, "agreement", "step", "size*"):
        table.add_column(column, justify="left" if column == "model" else "right")
    total = sum(metrics["steps"].values())
    table.add_row("teacher", _percent(metrics["teacher"][name]), "", "", size(metrics["teacher"]["size_bytes"]))
    for key, label in (("untrained", "quantized, untrained"), ("best", "best"), ("last", "last")):
        row = metrics[key]
        step = str(row["step"]) if "step" in row else "0"
        table.add_row(label, _percent(row[name]), _percent(row.get("agreement")), step, size(metrics["size_bytes"]))
    if assisted := metrics.get("assisted"):
        label = f"assisted (teacher inside, {assisted['site']})"
        table.add_row(label, _percent(assisted[f"assisted_{name}"]), "", str(assisted["step"]), "")
    console = Console()
    console.print(table)
    pace = f"{total} steps, {metrics['seconds_per_step']:.2f} s each; {metrics['seconds']:.0f} s with evaluations"
    console.print(f"{_SIZE_NOTE}. {pace}. Written to {folder}", highlight=False)


def show_finetuned(metrics: dict[str, Any], folder: Path, as_json: bool) -> None:
    """A fine-tuning's `metrics.json` in two lines."""
    if as_json:
        _print_json(metrics)
        return
    name, best, last = metrics["metric"], metrics["best"], metrics["last"]
    scores = f"{_percent(best[name])} (best on dev, step {best['step']}; last {_percent(last[name])})"
    cost = f"{metrics['seconds']:.0f} s, {size(metrics['size_bytes'])}"
    Console().print(f"{metrics['task']}: {name} {scores}, {cost}. Written to {folder}", highlight=False)


def show_scores(scores: dict[str, Any], as_json: bool) -> None:
    """What `evaluate` measured."""
    if as_json:
        _print_json(scores)
        return
    table = Table(title=f"{scores['model']} on {scores['task']}", show_header=False)
    for name, value in scores.items():
        if name not in ("model", "task"):
            table.add_row(name, size(value) if name == "size_bytes" else str(value))
    Console().print(table)


def show_demo(results: dict[str, Any], as_json: bool) -> None:
    """The demo's models side by side."""
    if as_json:
        _print_json(results)
        return
    teacher, students = results["teacher"], results["students"]
    table = Table(title="Is the sentence acceptable? Dev accuracy, classes balanced")
    for column in ("model", "best", "last", "steps", "seconds", "size*"):
        table.add_column(column, justify="left" if column == "model" else "right")
    seconds = f"{teacher['seconds']:.0f}"
    best, last = (_percent(teacher[key]["accuracy"]) for key in ("best", "last"))
    table.add_row("teacher", best, last, str(teacher["best"]["step"]), seconds, size(teacher["size_bytes"]))
    first = next(iter(students.values()))
    untrained = _percent(first["untrained"]["accuracy"])
    table.add_row("quantized, untrained", untrained, untrained, "0", "0", size(first["size_bytes"]))
    for name, run in students.items():
        best, last = (_percent(run[key]["accuracy"]) for key in ("best", "last"))
        steps, seconds = str(sum(run["steps"].values())), f"{run['seconds']:.0f}"
        table.add_row(name, best, last, steps, seconds, size(run["size_bytes"]))
    console = Console()
    console.print(table)
    plain, intervened = (run["best"]["accuracy"] for run in students.values())
    verdict = "is ahead" if intervened > plain else "is not ahead" if intervened < plain else "is level"
    console.print(f"Best against best, Teacher Intervention {verdict}: {_percent(intervened)} to {_percent(plain)}.")
    console.print(f"{_SIZE_NOTE}. Curves: {results['curves']}", highlight=False)


def show_recipes(shipped: dict[str, dict[str, Any]], as_json: bool) -> None:
    """The recipes that ship, each with its base and what differs from it."""
    if as_json:
        _print_json(shipped)
        return
    table = Table()
    for column in ("recipe", "base", "differs in", "what it is"):
        table.add_column(column)
    for name, values in shipped.items():
        differs = ", ".join(
            f"{key}={value}" for key, value in values.items() if key not in ("base", "name", "description")
        )
        base = values.get("base", "")
        table.add_row(name, base, differs if base else "(all keys)", values.get("description", ""))
    Console().print(table)


def show_keys(kind: type) -> None:
    """Every key of a recipe with its default."""
    table = Table()
    for column in ("key", "default"):
        table.add_column(column)
    for field in fields(kind):
        table.add_row(field.name, "null" if field.default is None else str(field.default))
    Console().print(table)


def size(size_bytes: int) -> str:
    """Bytes in decimal units.

    >>> size(12_345_678)
    '12.3 MB'
    """
    for unit, name in _SCALES:
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} B"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _print_json(values: dict[str, Any]) -> None:
    print(json.dumps(values, indent=2))
