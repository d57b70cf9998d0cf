"""The training curves of the page: panels as images, and one shared legend as text."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from ..analysis.plots import REFERENCE_LINES, SITE_COLOURS, curves, run_style
from .figures import drawn
from .runs import MODELS, Run
from .tables import percent, span_of, words

_DASHES = {"-": "", "--": "6 3", ":": "1.5 3", "-.": "6 3 1.5 3"}
_REFERENCE_COLOUR = "grey"


@dataclass(frozen=True)
class Panel:
    """One quantity of all runs against the step.

    Attributes:
        title: of the quantity.
        source: the image, as a `data:` URL.
        description: alternative text.
    """

    title: str
    source: str
    description: str


@dataclass(frozen=True)
class Entry:
    """One line of the legend; `dashes` is an SVG dash pattern, or None for an area."""

    label: str
    colour: str
    dashes: str | None


def panels(runs: Sequence[Run]) -> tuple[list[Panel], list[Panel]]:
    """Every training loss, and every dev score, the one that selects first."""
    lines: dict[str, dict[str, float]] = {}
    for label, run, model in references(runs):
        for metric, value in run.metrics[model].items():
            lines.setdefault(metric, {})[label] = value
    figures = curves({run.name: run.history for run in runs}, {run.name: run.spans for run in runs}, lines)
    losses = [key for key in figures if not key.startswith("eval_")]
    scores = [key for key in figures if key.startswith("eval_")]
    scores.sort(key=lambda key: key != f"eval_{runs[0].metrics['metric']}")
    loss_panels, score_panels = ([_panel(runs, key, figures[key]) for key in keys] for keys in (losses, scores))
    return loss_panels, score_panels


def references(runs: Sequence[Run]) -> list[tuple[str, Run, str]]:
    """Models whose scores stay constant: label, run and key of `metrics.json`; as many as there are line styles."""
    found: dict[tuple[str, float], tuple[list[str], Run]] = {}
    for model in ("teacher", "untrained"):
        for run in runs:
            if model in run.metrics:
                score = run.metrics[model][run.metrics["metric"]]
                found.setdefault((model, score), ([], run))[0].append(run.name)
    return [
        (MODELS[model] + ("" if len(names) == len(runs) else f" of {', '.join(names)}"), run, model)
        for (model, _), (names, run) in list(found.items())[: len(REFERENCE_LINES)]
    ]


def legend(runs: Sequence[Run]) -> list[Entry]:
    """Runs and shaded sites."""
    styles = [run_style(index) for index in range(len(runs))]
    entries = [
        Entry(run.name, style["color"], _DASHES[style["linestyle"]]) for run, style in zip(runs, styles, strict=True)
    ]
    inside = {site for run in runs for _, _, site in run.spans}
    return entries + [
        Entry(f"teacher's {site} inside", colour, None) for site, colour in SITE_COLOURS.items() if site in inside
    ]


def reference_legend(runs: Sequence[Run]) -> list[Entry]:
    """The grey lines of the dev scores."""
    metric = runs[0].metrics["metric"]
    return [
        Entry(f"{label} ({percent(run.metrics[model][metric])})", _REFERENCE_COLOUR, _DASHES[line])
        for (label, run, model), line in zip(references(runs), REFERENCE_LINES, strict=False)
    ]


def whose_spans(runs: Sequence[Run]) -> str:
    """One sentence on the shaded sites; empty without intervention."""
    having = [run for run in runs if run.spans]
    if not having:
        return ""
    if len({tuple(run.spans) for run in having}) > 1:
        return (
            "The strips at the bottom of each panel show which of the teacher's tensors was inside at which step, one "
            "strip per run, underlined in the run's colour."
        )
    names = " and ".join(run.name for run in having) if len(having) < len(runs) or len(runs) == 1 else "every run"
    return f"Shaded: the steps that {names} made with one of the teacher's tensors in place of the student's."


def _panel(runs: Sequence[Run], key: str, figure: Figure) -> Panel:
    spans = {run.name: span_of(run.history, key) for run in runs}
    described = "; ".join(f"{name} from {span}" for name, span in spans.items() if span)
    title = "sum of losses" if key == "loss" else words(key.removeprefix("eval_"))
    return Panel(title, drawn(figure), f"{title} against the step: {described}")
