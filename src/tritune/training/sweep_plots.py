"""Figures of a sweep: curves, heat maps, scatter plots."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Values of the keys and scores of the seeds, for every point of one sweep.
Part = list[tuple[Mapping[str, Any], Sequence[float]]]


def sweep_figure(
    points: Sequence[tuple[str, Mapping[str, Any], Sequence[float]]], metric: str, log_keys: Collection[str] = ()
) -> Figure:
    """The scores of a sweep: curves for sweeps of one key, a heat map for grids of two, else a scatter plot per key.

    Curves have the standard deviation over the seeds as error bars; all sweeps of one numeric key share a panel.

    Args:
        points: name of the sweep, values of the keys and scores of the seeds for each point.
        metric: name of the score.
        log_keys: keys with a logarithmic axis.
    """
    parts: dict[str, Part] = {}
    for name, values, scores in points:
        parts.setdefault(name, []).append((values, scores))
    curves = {name: part for name, part in parts.items() if _is_curve(part)}
    panels: list[Callable[[Axes], None]] = [partial(_curves, curves, metric, log_keys)] if curves else []
    for name, part in parts.items():
        if _is_grid(part):
            panels.append(partial(_heat_map, name, part, metric))
        elif name not in curves:
            panels += [partial(_scatter, name, part, key, metric, log_keys) for key in part[0][0]]
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    for axes, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes)
    return figure


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_curve(part: Part) -> bool:
    return all(len(values) == 1 and all(map(_is_number, values.values())) for values, _ in part)


def _is_grid(part: Part) -> bool:
    """Whether two keys take few values each, in most combinations."""
    if any(len(values) != 2 for values, _ in part):
        return False
    options = [_options(part, key) for key in part[0][0]]
    return len(part) > 0.5 * len(options[0]) * len(options[1]) and min(map(len, options)) > 1


def _options(part: Part, key: str) -> list[Any]:
    """The values of a key: numbers in order, others as they come."""
    found = []
    for values, _ in part:
        if values[key] not in found:
            found.append(values[key])
    return sorted(found) if all(map(_is_number, found)) else found


def _curves(curves: Mapping[str, Part], metric: str, log_keys: Collection[str], axes: Axes) -> None:
    keys = {key for part in curves.values() for values, _ in part for key in values}
    for index, (name, part) in enumerate(curves.items()):
        (key,) = part[0][0]
        ordered = sorted((values[key], scores) for values, scores in part)
        where, scores = [value for value, _ in ordered], [scores for _, scores in ordered]
        spread = [stdev(several) if len(several) > 1 else 0 for several in scores]
        style: dict[str, Any] = {"marker": "o", "capsize": 3, "color": f"C{index}", "label": f"{name}: {key}"}
        axes.errorbar(where, [fmean(several) for several in scores], spread, **style)
    axes.set(xlabel=next(iter(keys)) if len(keys) == 1 else "value of the key", ylabel=metric.replace("_", " "))
    if keys <= set(log_keys):
        axes.set_xscale("log")
    seeds = max(len(scores) for part in curves.values() for _, scores in part)
    axes.set_title(f"mean and standard deviation over {seeds} seeds" if seeds > 1 else "one seed")
    axes.legend(fontsize="small")


def _heat_map(name: str, part: Part, metric: str, axes: Axes) -> None:
    down, across = part[0][0]
    rows, columns = _options(part, down), _options(part, across)
    means = [[float("nan")] * len(columns) for _ in rows]
    for values, scores in part:
        means[rows.index(values[down])][columns.index(values[across])] = fmean(scores)
    image = axes.imshow(means, origin="lower", cmap="viridis", aspect="auto")
    low, high = image.get_clim()
    for row, line in enumerate(means):
        for column, value in enumerate(line):
            if value == value:
                colour = "white" if value < (low + high) / 2 else "black"
                axes.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize="small", color=colour)
    axes.set_xticks(range(len(columns)), [str(value) for value in columns])
    axes.set_yticks(range(len(rows)), [str(value) for value in rows])
    axes.set(title=name, xlabel=across, ylabel=down)
    axes.figure.colorbar(image, ax=axes, label=metric.replace("_", " "))


def _scatter(name: str, part: Part, key: str, metric: str, log_keys: Collection[str], axes: Axes) -> None:
    options = _options(part, key)
    numeric = all(map(_is_number, options))
    for values, scores in part:
        where = values[key] if numeric else options.index(values[key])
        axes.scatter([where] * len(scores), scores, color="C0", alpha=0.5)
    if not numeric:
        axes.set_xticks(range(len(options)), [str(value) for value in options])
    elif key in log_keys:
        axes.set_xscale("log")
    axes.set(title=name, xlabel=key, ylabel=metric.replace("_", " "))
