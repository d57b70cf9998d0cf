"""Pictures of a sweep: curves, heat maps, scatters."""

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure


def sweep_figure(
    points: Sequence[tuple[str, Mapping[str, Any], Sequence[float]]], metric: str, log_keys: Collection[str] = ()
) -> Figure:
    """The scores of a sweep: curves for sweeps of one key, a heat map for grids of two, else a scatter for every key.

    Curves have the deviation over the seeds as error bars; sweeps of one numeric key each share one picture.

    Args:
        points: of each the name of its sweep, key to value, and the scores of its seeds.
        metric: the score to draw.
        log_keys: keys whose axis is logarithmic.
    """
    parts = {name: [(values, scores) for _, values, scores in group] for name, group in _grouped(points).items()}
    curves = {name: part for name, part in parts.items() if _is_curve(part)}
    others = {name: part for name, part in parts.items() if name not in curves}
    panels = [("curves", curves)] * bool(curves) + [
        (name, (part, key)) for name, part in others.items() for key in ([None] if _is_grid(part) else part[0][0])
    ]
    figure = Figure(figsize=(5.5 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (name, content) in zip(axes, panels, strict=True):
        if name == "curves":
            _curves(panel, content, metric, log_keys)
        elif content[1] is None:
            _heat_map(figure, panel, content[0], metric)
            panel.set_title(name)
        else:
            _scatter(panel, *content, metric, log_keys)
            panel.set_title(name)
    return figure


def _grouped(points: Sequence[tuple[str, Mapping[str, Any], Sequence[float]]]) -> dict[str, list]:
    found: dict[str, list] = {}
    for point in points:
        found.setdefault(point[0], []).append(point)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_curve(part: list) -> bool:
    return all(len(values) == 1 and all(map(_is_number, values.values())) for values, _ in part)


def _is_grid(part: list) -> bool:
    """Whether two keys take few values each, and every combination of them."""
    if any(len(values) != 2 for values, _ in part):
        return False
    options = [_options(part, key) for key in part[0][0]]
    return len(part) > 0.5 * len(options[0]) * len(options[1]) and min(map(len, options)) > 1


def _options(part: list, key: str) -> list:
    """The values that a key takes: numbers in order, others as they come."""
    found = []
    for values, _ in part:
        if values[key] not in found:
            found.append(values[key])
    return sorted(found) if all(map(_is_number, found)) else found


def _curves(axes: Any, curves: Mapping[str, list], metric: str, log_keys: Collection[str]) -> None:
    keys = {key for part in curves.values() for values, _ in part for key in values}
    for index, (name, part) in enumerate(curves.items()):
        (key,) = part[0][0]
        ordered = sorted((values[key], scores) for values, scores in part)
        where, scores = [value for value, _ in ordered], [scores for _, scores in ordered]
        spread = [stdev(several) if len(several) > 1 else 0 for several in scores]
        style = {"marker": "o", "capsize": 3, "color": f"C{index}", "label": f"{name}: {key}"}
        axes.errorbar(where, [fmean(several) for several in scores], spread, **style)
    axes.set(xlabel=next(iter(keys)) if len(keys) == 1 else "value of the key", ylabel=metric.replace("_", " "))
    if keys <= set(log_keys):
        axes.set_xscale("log")
    seeds = max(len(scores) for part in curves.values() for _, scores in part)
    axes.set_title(f"mean and standard deviation over {seeds} seeds" if seeds > 1 else "one seed")
    axes.legend(fontsize="small")


def _heat_map(figure: Figure, axes: Any, part: list, metric: str) -> None:
    down, across = part[0][0]
    rows, columns = _options(part, down), _options(part, across)
    means = [[float("nan")] * len(columns) for _ in rows]
    for values, scores in part:
        means[rows.index(values[down])][columns.index(values[across])] = fmean(scores)
    image = axes.imshow(means, origin="lower", cmap="viridis", aspect="auto")
    middle = (image.norm.vmin + image.norm.vmax) / 2
    for row, line in enumerate(means):
        for column, value in enumerate(line):
            if value == value:
                colour = "white" if value < middle else "black"
                axes.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize="small", color=colour)
    axes.set(xticks=range(len(columns)), yticks=range(len(rows)), xlabel=across, ylabel=down)
    axes.set_xticklabels([str(value) for value in columns])
    axes.set_yticklabels([str(value) for value in rows])
    figure.colorbar(image, ax=axes, label=metric.replace("_", " "))


def _scatter(axes: Any, part: list, key: str, metric: str, log_keys: Collection[str]) -> None:
    options = _options(part, key)
    numeric = all(map(_is_number, options))
    for values, scores in part:
        where = values[key] if numeric else options.index(values[key])
        axes.scatter([where] * len(scores), scores, color="C0", alpha=0.5)
    if not numeric:
        axes.set_xticks(range(len(options)), [str(value) for value in options])
    elif key in log_keys:
        axes.set_xscale("log")
    axes.set(xlabel=key, ylabel=metric.replace("_", " "))
