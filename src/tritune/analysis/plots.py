"""Figures of runs and benchmarks: each function takes numbers and returns a matplotlib figure."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ..distil.schedule import SCHEDULES

SITE_COLOURS = {"projection": "#b7d3ea", "context": "#d4e5f3", "map": "#eaf2f9", "block": "#fbeedd"}
REFERENCE_LINES = ("--", ":", "-.", "-")
_PANEL_INCHES = (4.2, 2.7)
_LINE_STYLES = ("-", "--", ":", "-.")
_COLOURS = 10

Span = tuple[int, int, str]


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's `history.jsonl`."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def training_curves(
    histories: Mapping[str, list[dict[str, Any]]], metric: str, references: Mapping[str, float] | None = None
) -> Figure:
    """Dev score and training loss against the step, the steps with intervention shaded by site.

    Args:
        histories: run name to its history, as `read_history` returns it.
        metric: the score to draw, as `metrics.json` names it.
        references: name to score of models that are not trained (the teacher, the untrained student).
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    scores, losses = figure.subplots(1, 2)
    logged = {
        name: _stretches((row["step"], row.get("site")) for row in history if "loss" in row)
        for name, history in histories.items()
    }
    _draw(scores, f"eval_{metric}", histories, logged, references or {})
    _draw(losses, "loss", histories, {}, {})
    scores.set_title("Student alone, on dev")
    losses.set_title("Training: sum of losses")
    for axes in (scores, losses):
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        axes.legend(once.values(), once.keys(), fontsize="small")
    return figure


def run_style(index: int) -> dict[str, str]:
    """Colour and line style of the run with this index; distinct for the first forty runs."""
    return {"color": to_hex(f"C{index % _COLOURS}"), "linestyle": _LINE_STYLES[index // _COLOURS % len(_LINE_STYLES)]}


def schedule_spans(schedule: str, steps: int, seed: int) -> list[Span]:
    """The intervals of step one with one site, as (steps before it, its last step, site).

    The sites in `history.jsonl` are those of the logged steps only; these are exact.

    >>> schedule_spans("gradual", 30, 42)
    [(0, 5, 'projection'), (5, 10, 'context'), (10, 30, 'map')]

    Args:
        schedule: a name in `SCHEDULES`.
        steps: length of step one.
        seed: of the run.
    """
    return _stretches((step + 1, SCHEDULES[schedule](step, steps, seed).value) for step in range(steps))


def curves(
    histories: Mapping[str, list[dict[str, Any]]],
    spans: Mapping[str, Sequence[Span]] | None = None,
    references: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Figure]:
    """Every training loss and dev score against the step: a panel each, runs overlaid, intervention shaded by site.

    Panels have no legend: see `run_style`, `SITE_COLOURS` and `REFERENCE_LINES`.

    Args:
        histories: run name to its history, as `read_history` returns it.
        spans: run name to the intervals with intervention, as `schedule_spans` returns them.
        references: metric to the scores, by name, of models that are not trained; drawn as grey lines, as many as
            there are styles.

    Returns:
        Key of the history to its panel: `loss`, `logits_loss`, …, then `eval_accuracy`, ….
    """
    rows = [row for history in histories.values() for row in history]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    scores = [key for key in keys if key.startswith("eval_") and not key.endswith(("_loss", "_runtime", "_per_second"))]
    losses = [key for key in keys if key.endswith("_loss") and not key.startswith("eval_")]
    panels = {}
    for key in (*(["loss"] if "loss" in keys else []), *losses, *scores):
        panels[key] = Figure(figsize=_PANEL_INCHES, layout="constrained")
        lines = (references or {}).get(key.removeprefix("eval_"), {})
        _draw(panels[key].subplots(), key, histories, spans or {}, lines)
    return panels


def beside_differences(
    models: Sequence[str], values: np.ndarray, colours: str
) -> list[tuple[str, np.ndarray, dict[str, Any]]]:
    """Heat maps of models, then of how far each but the first is from the first; those of one kind share their limits.

    Args:
        models: names.
        values: (models, ..., ...), not negative; NaN is left blank.
        colours: the colour map of the models' own values.

    Returns:
        Of every heat map its title, its values and how `imshow` colours them.
    """
    first, *others = models
    differences = values[1:] - values[0]
    spread = np.nanmax(np.abs(differences), initial=1e-12)
    own = {"cmap": colours, "vmin": 0, "vmax": np.nanmax(values, initial=0)}
    signed = {"cmap": "RdBu_r", "vmin": -spread, "vmax": spread}
    return [
        *((name, panel, own) for name, panel in zip(models, values, strict=True)),
        *((f"{name} - {first}", panel, signed) for name, panel in zip(others, differences, strict=True)),
    ]


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


def _stretches(sites: Iterable[tuple[int, str | None]]) -> list[Span]:
    """Group (step, site) pairs into intervals with one site; steps without a site are left out."""
    spans, before = [], 0
    for site, group in groupby(sites, key=lambda pair: pair[1]):
        *_, (last, _) = group
        if site is not None:
            spans.append((before, last, site))
        before = last
    return spans


def _draw(
    axes: Any,
    key: str,
    histories: Mapping[str, list[dict[str, Any]]],
    spans: Mapping[str, Sequence[Span]],
    references: Mapping[str, float],
) -> None:
    """One quantity of all runs; a score with a dot at every evaluation."""
    is_score = key.startswith("eval_")
    for index, (name, history) in enumerate(histories.items()):
        points = {row["step"]: row[key] for row in history if key in row}
        marker = "o" if is_score else "."
        axes.plot([*points], [*points.values()], **run_style(index), label=name, marker=marker, markersize=4)
    for (name, score), line in zip(references.items(), REFERENCE_LINES, strict=False):
        axes.axhline(score, color="grey", linestyle=line, linewidth=1.2, label=name)
    label = key.removeprefix("eval_").replace("_", " ")
    if is_score:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}")
        label += " x 100"
    else:
        _scale_loss(axes, [row[key] for history in histories.values() for row in history if key in row])
    axes.set_xlabel("step")
    axes.set_ylabel(label, parse_math=False)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    _shade_spans(axes, {index: spans[name] for index, name in enumerate(histories) if spans.get(name)})


def _scale_loss(axes: Any, values: Sequence[float]) -> None:
    """A logarithmic axis where a loss falls tenfold or more; nothing at or below zero has a place on it."""
    shown = [value for value in values if math.isfinite(value)]
    if shown and min(shown) > 0 and max(shown) >= 10 * min(shown):
        axes.set_yscale("log")
        decades = math.log10(max(shown) / min(shown))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _shade_spans(axes: Any, spans: Mapping[int, Sequence[Span]]) -> None:
    """Shade the panel if runs share their sites; else give each a strip at the bottom, underlined in its colour."""
    if not spans:
        return
    alike = len({tuple(stretches) for stretches in spans.values()}) == 1
    foot = min(0.25, 0.05 * len(spans))
    height = 1.0 if alike else foot / len(spans)
    if not alike:
        axes.margins(y=max(0.05, foot / (1 - 2 * foot)))  # lifts the curves above the strips
    for row, (index, stretches) in enumerate(list(spans.items())[: 1 if alike else None]):
        for site in dict.fromkeys(site for _, _, site in stretches):
            bars = [(before, last - before) for before, last, its_site in stretches if its_site == site]
            axes.broken_barh(
                bars,
                (row * height, height),
                transform=axes.get_xaxis_transform(),
                color=SITE_COLOURS[site],
                linewidth=0,
                zorder=0,
                label=f"teacher's {site} inside",
                rasterized=len(bars) > 100,  # thousands of bars, as a stochastic schedule may have, are smaller so
            )
        if not alike:
            ends, line = (stretches[0][0], stretches[-1][1]), [row * height] * 2
            axes.plot(ends, line, transform=axes.get_xaxis_transform(), **run_style(index), linewidth=1.5)
