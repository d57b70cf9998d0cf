"""Pictures of what a run left behind; each takes numbers and returns a matplotlib figure."""

import json
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_SITE_COLOURS = {"projection": "#c6dbef", "context": "#deebf7", "map": "#f2f7fc"}


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's `history.jsonl`."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def training_curves(
    histories: Mapping[str, list[dict[str, Any]]], metric: str, references: Mapping[str, float] | None = None
) -> Figure:
    """Dev score and training loss against the step, one colour a run, the steps with intervention shaded by site.

    Args:
        histories: run name to its history, as `read_history` returns it.
        metric: the score to draw, as `metrics.json` names it.
        references: name to score of models that stay as they are (teacher, quantized without training).
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    scores, losses = figure.subplots(1, 2)
    for history in histories.values():
        _shade_sites(scores, history)
    for index, (name, history) in enumerate(histories.items()):
        _line(scores, history, f"eval_{metric}", name, f"C{index}", marker="o")
        _line(losses, history, "loss", name, f"C{index}")
    for (name, score), style in zip((references or {}).items(), ("--", ":", "-."), strict=False):
        scores.axhline(score, color="grey", linestyle=style, label=name)
    scores.set(xlabel="step", ylabel=metric.replace("_", " "), title="Student alone, on dev")
    losses.set(xlabel="step", ylabel="sum of losses", title="Training", yscale="log")
    scores.legend(fontsize="small")
    losses.legend(fontsize="small")
    return figure


def runtime_bars(timings: Iterable[Mapping[str, Any]]) -> Figure:
    """Latency relative to ONNX Runtime float, a group of bars for every shape, the milliseconds on the bars.

    Args:
        timings: rows of `bench.measure.bench`: `name`, `batch`, `length`, `latency_ms`, `ratio`.
    """
    rows = list(timings)
    names = list(dict.fromkeys(row["name"] for row in rows))
    shapes = list(dict.fromkeys((row["batch"], row["length"]) for row in rows))
    figure = Figure(figsize=(2 + 2.2 * len(shapes), 4), layout="constrained")
    axes, width = figure.subplots(), 0.8 / len(names)
    for index, name in enumerate(names):
        own = {(row["batch"], row["length"]): row for row in rows if row["name"] == name}
        places = [place + (index - (len(names) - 1) / 2) * width for place in range(len(shapes))]
        bars = axes.bar(places, [own[shape]["ratio"] for shape in shapes], width, label=name, color=f"C{index}")
        axes.bar_label(bars, [f"{own[shape]['latency_ms']:.3g}" for shape in shapes], fontsize="x-small", rotation=90)
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(shapes)), [f"{batch} x {length}" for batch, length in shapes])
    axes.set(xlabel="batch x tokens", ylabel="latency / onnxruntime float", title="Lower is faster (bars: ms)")
    axes.margins(y=0.2)
    axes.legend(fontsize="small")
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format of the file's ending."""
    figure.savefig(path, dpi=150)


def _line(axes: Any, history: Iterable[dict[str, Any]], key: str, name: str, colour: str, **style: Any) -> None:
    points = [(row["step"], row[key]) for row in history if key in row]
    axes.plot([step for step, _ in points], [value for _, value in points], label=name, color=colour, **style)


def _shade_sites(axes: Any, history: Iterable[dict[str, Any]]) -> None:
    rows = [(row["step"], row.get("site")) for row in history if "loss" in row]
    previous = 0
    for site, group in groupby(rows, key=lambda row: row[1]):
        last = list(group)[-1][0]
        if site is not None:
            axes.axvspan(previous, last, color=_SITE_COLOURS[site], zorder=0, label=f"teacher's {site} inside")
        previous = last
