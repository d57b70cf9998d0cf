"""What the convergence benchmark shows of its cells: CSV lines, tables over seeds, and figures.

A line is a mapping with the keys of `COLUMNS`, as a cell stored it or as `csv` reads it.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib
from cells import percent
from convergence_cells import ARMS, MODELS, UNIT_ROWS, WORK, Cell
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

COLUMNS = (
    *("model", "task", "arm", "rows", "steps", "seed", "score", "teacher_score"),
    *("agreement", "kl", "seconds", "size_bytes"),
)
DISTANCES = {"STS-B": "MSE", "sentences": "1 − cosine"}
COLOURS = {
    "tritune": "#e07b00",
    "tritune, W2A4": "#7a3e00",
    "tritune, ternary": "#f2c14e",
    "ti-g": "#1f4e79",
    "ternarybert": "#3a7d44",
    "ternarybert-block": "#8fc79a",
    "features": "#3a7d44",
    "features-ti-g": "#1f4e79",
    "ti-o": "#7fb0dc",
    "ti-c": "#b08fc7",
    "ti-m": "#8c564b",
    "ti-inverted": "#c0504d",
    "ti-stochastic": "#999999",
}
STYLES = {"1e-4": "-", "2e-4": "-", "3e-4": "--", "5e-5": ":"}

Line = Mapping[str, Any]


# The others are in the tables: more curves could not be told apart.
DRAWN = tuple(ARMS)[:9]


def line_of(cell: Cell, metrics: Line, evaluation: Line) -> dict[str, Any]:
    """A finished cell as a line.

    Args:
        cell: that was run.
        metrics: of its run folder.
        evaluation: of its student on the unseen rows, beside its teacher.
    """
    metric, last = metrics["metric"], metrics["last"]
    agreement, distance = closeness(evaluation)
    return {
        "model": cell.model,
        "task": cell.task,
        "arm": cell.arm,
        "rows": cell.rows,
        "steps": cell.steps,
        "seed": cell.seed,
        "score": percent(last[metric], 2),
        "teacher_score": percent(metrics["teacher"][metric], 2),
        "agreement": percent(agreement, 2),
        "kl": float(f"{distance:.5g}"),
        # Of a run that went on after a step, only the part after it is counted.
        "seconds": "" if any(metrics.get("resumed", ())) else metrics["seconds"],
        "size_bytes": metrics["size_bytes"],
    }


def key_of(line: Line) -> tuple[str, str, str, int, int]:
    """What tells the line of one cell from those of others."""
    return line["model"], line["task"], line["arm"], int(line["rows"]), int(line["seed"])


def closeness(evaluation: Line) -> tuple[float | None, float]:
    """Agreement with the teacher and distance to it, by the kind of task.

    Classes: the share of equal answers and KL(teacher || student). One number: the Spearman correlation, where the
    labels are the teacher's ranks, and the mean squared error. Sentence encoders: nothing and 1 - cosine.
    """
    if "cosine_to_teacher" in evaluation:
        return None, 1 - evaluation["cosine_to_teacher"]
    if "mse_to_teacher" in evaluation:
        return evaluation["spearman"], evaluation["mse_to_teacher"]
    return evaluation["agreement"], evaluation["kl_to_teacher"]


def in_order(lines: Iterable[Line]) -> list[Line]:
    """Lines by model, task, arm, rows and seed; what the tables of cells no longer have comes last."""

    def place(line: Line) -> tuple:
        names = zip((MODELS, WORK, ARMS), ("model", "task", "arm"), strict=True)
        known = [[*table].index(line[key]) if line[key] in table else len(table) for table, key in names]
        return (*known, line["arm"], int(line["rows"]), int(line["seed"]))

    return sorted(lines, key=place)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation (number of values).

    >>> spread([1.0, 2.0], 1), spread([1.0], 1), spread([], 1)
    ('1.5 ± 0.7 (2)', '1.0 (1)', '')
    """
    if not values:
        return ""
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{deviation} ({len(values)})"


def table(lines: Sequence[Line], column: str, digits: int) -> str:
    """Arms and budgets downwards, tasks across; the first row is the teacher's if the column is the score."""
    tasks = [task for task in WORK if any(line["task"] == task for line in lines)]
    heads = [f"{task} ({DISTANCES.get(task, 'KL')})" if column == "kl" else task for task in tasks]
    text = ["| arm | units | " + " | ".join(heads) + " |", "|---" * (2 + len(tasks)) + "|"]
    if column == "score":
        teachers = [next(line for line in lines if line["task"] == task)["teacher_score"] for task in tasks]
        text.append("| teacher | | " + " | ".join(f"{float(score):.{digits}f}" for score in teachers) + " |")
    for arm, units in dict.fromkeys((line["arm"], _units(line)) for line in sorted(lines, key=_rank)):
        cells = []
        for task in tasks:
            like = [line for line in lines if (line["task"], line["arm"], _units(line)) == (task, arm, units)]
            cells.append(spread([float(line[column]) for line in like], digits))
        text.append(f"| {arm} | {units:g} | " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


def _units(line: Line) -> float:
    return round(int(line["rows"]) / UNIT_ROWS, 2)


def _rank(line: Line) -> tuple[int, float]:
    """Arms in the order of their table, smaller budgets first."""
    return [*ARMS, line["arm"]].index(line["arm"]), _units(line)


def page_part(model: str, lines: Iterable[Line]) -> str:
    """What the page says of a model: the figure, the scores and the distances; nothing without lines."""
    own = [line for line in lines if line["model"] == model]
    if not own:
        return "No results yet.\n"
    shown = f"![Score and distance to the teacher against rows, {model}](figures/convergence-{model}.png)\n"
    scores = "Dev score, per cent:\n\n" + table(own, "score", 1)
    return f"{shown}\n{scores}\nDistance to the teacher on the unseen rows:\n\n{table(own, 'kl', 4)}"


def draw(model: str, lines: Iterable[Line]) -> Figure:
    """Score and distance to the teacher against rows: a row of panels a task, a curve an arm, over the seeds."""
    own = [line for line in lines if line["model"] == model and line["arm"] in DRAWN]
    tasks = [task for task in WORK if any(line["task"] == task for line in own)]
    with matplotlib.rc_context({"font.size": 10}):
        figure = Figure(figsize=(8, 2.5 * len(tasks) + 1), layout="constrained")
        for (left, right), task in zip(figure.subplots(len(tasks), 2, squeeze=False, sharex=True), tasks, strict=True):
            of_task = [line for line in own if line["task"] == task]
            for axes, column in ((left, "score"), (right, "kl")):
                _panel(axes, of_task, column)
            left.axhline(float(of_task[0]["teacher_score"]), color="#555555", linewidth=1, linestyle=(0, (1, 1)))
            left.set(title=f"{task}: score (dotted: teacher)")
            right.set(title=f"{task}: {DISTANCES.get(task, 'KL')} to the teacher", yscale="log")
            distances = [float(line["kl"]) for line in of_task]
            right.set_ylim(min(distances) / 1.5, max(distances) * 1.5)  # of a single one there would be no axis
            right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            right.yaxis.set_major_formatter("{x:g}")
            right.yaxis.set_minor_formatter(NullFormatter())
        for axes in figure.axes[-2:]:
            axes.set_xlabel("rows, forward and backward")
            axes.set_xticks(sorted({int(line["rows"]) for line in own}))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
        handles = {
            label: handle
            for axes in figure.axes
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        named = [name for name in ARMS if name in handles]
        figure.legend([handles[name] for name in named], named, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _panel(axes: Axes, lines: Sequence[Line], column: str) -> None:
    """A curve for every arm, mean and deviation over its seeds."""
    for arm in (name for name in ARMS if any(line["arm"] == name for line in lines)):
        values: dict[int, list[float]] = {}
        for line in lines:
            if line["arm"] == arm:
                values.setdefault(int(line["rows"]), []).append(float(line[column]))
        rows = sorted(values)
        means = [fmean(values[count]) for count in rows]
        deviations = [stdev(values[count]) if len(values[count]) > 1 else 0.0 for count in rows]
        recipe, rate = ARMS[arm].recipe, arm.rpartition(" ")[2]
        axes.errorbar(
            rows,
            means,
            deviations,
            label=arm,
            color=COLOURS.get(arm, COLOURS.get(recipe, "black")),
            linestyle="-." if "+" in arm else STYLES.get(rate, "-"),
            linewidth=2.6 if recipe == "tritune" else 1.3,
            marker="o",
            markersize=3.5,
            capsize=2,
        )
    axes.set_xscale("log")
    axes.spines[["top", "right"]].set_visible(False)


def write_figures(folder: Path, lines: Sequence[Line]) -> None:
    """`convergence-MODEL.png` for every model that has lines."""
    for model in dict.fromkeys(line["model"] for line in lines):
        draw(model, lines).savefig(folder / f"convergence-{model}.png", dpi=110, metadata={"Software": None})
