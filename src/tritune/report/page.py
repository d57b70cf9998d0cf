"""Writes the report of run folders as one HTML file."""

import math
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ..errors import TrituneError, readable
from ..tasks.heads import HEADS, IMAGE_CLASSIFICATION, TEXT_CLASSIFICATION
from ..tasks.registry import TASKS
from ..tasks.task_file import TASK_FILE
from ..training.run_folder import BEST, write_text
from . import curves, tables
from .runs import Run, other_dev_rows, read_runs

GENERATOR = '<meta name="generator" content="tritune report">'
_TEMPLATE = "page.html.jinja"


def write_report(folders: Sequence[Path], output: Path, overwrite: bool = False) -> list[Run]:
    """Write the report of some run folders.

    Args:
        folders: of runs of one task, all students or all fine-tuned teachers; a demo's folder stands for its students.
        output: the file to write; an existing report is replaced.
        overwrite: whether any other existing file may be replaced too.

    Returns:
        The runs in the report.

    Raises:
        TrituneError: a folder cannot be read, or the file cannot be written; an existing file is then unchanged.
    """
    check_output(output, overwrite)
    runs = read_runs(folders)
    write_page(render(runs), output)
    return runs


def write_page(html: str, output: Path) -> None:
    """Write a page, whole or not at all; TrituneError if it cannot be written."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, html)
    except OSError as error:
        raise TrituneError(f"{output}: cannot be written ({error.strerror})") from None


def check_output(output: Path, overwrite: bool) -> None:
    """Check that a report may be written to `output`.

    Raises:
        TrituneError: it is a folder, or a file that is not a report and may not be replaced.
    """
    if output.is_dir():
        raise TrituneError(f"{output}: this is a folder; --output takes the name of a file, such as report.html")
    if not output.exists() or overwrite:
        return
    try:
        with output.open("rb") as file:
            start = file.read(1000)
    except OSError as error:
        raise TrituneError(f"{output}: cannot be read ({error.strerror})") from None
    if GENERATOR.encode() not in start:
        raise TrituneError(f"{output}: exists and is not a report; give --overwrite or another name")


def render(runs: Sequence[Run], template: str = _TEMPLATE, **more: Any) -> str:
    """The page as text that can be encoded in UTF-8; the contents of files are escaped.

    Args:
        runs: what it is about.
        template: a file of this folder that extends the page of runs.
        **more: what that template takes besides; it may replace what the page of runs takes, such as `title`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(template).render(_contents(runs) | more)
    return html.encode("utf-8", "replace").decode()


def _contents(runs: Sequence[Run]) -> dict[str, Any]:
    losses, scores = curves.panels(runs)
    return {
        "generator": Markup(GENERATOR),
        "title": _title(runs),
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "runs": runs,
        "are_students": runs[0].is_student,
        "metric": tables.words(runs[0].metrics["metric"]),
        "leads": [lead(run) for run in runs],
        "warnings": [*other_dev_rows(runs), *filter(None, map(_not_finite, runs))],
        "summary": tables.summary(runs),
        "reconstruction": tables.reconstruction(runs),
        "scores": tables.scores(runs),
        "facts": tables.facts(runs),
        "loss_panels": losses,
        "score_panels": scores,
        "legend": curves.legend(runs),
        "reference_legend": curves.reference_legend(runs),
        "whose_spans": curves.whose_spans(runs),
        "analyses": _analyses(runs),
        "differences": tables.recipe_differences(runs),
        "versions": tables.versions(runs),
        "loading": [_loading(run) for run in runs],
    }


def _title(runs: Sequence[Run]) -> str:
    task = runs[0].metrics["task"]
    names = " and ".join(run.name for run in runs) if len(runs) < 3 else f"{len(runs)} runs"
    return f"{names} on {TASKS[task].title if task in TASKS else task}"


def lead(run: Run) -> str:
    """The outcome of a run as a sentence that continues the run's name."""
    metrics, metric = run.metrics, run.metrics["metric"]
    if not run.finished:
        best = f"; best so far {tables.percent(metrics['best'][metric])}" if "best" in metrics else ""
        return f"is not finished: at step {run.last_step:,} of {run.steps:,}{best}."
    after = f"{run.steps:,} steps" if run.steps else "its reconstruction"
    last = f"scores {tables.percent(metrics['last'][metric])} after {after}"
    if not run.is_student:
        return f"{last} ({tables.percent(metrics['best'][metric])} at its best)."
    teacher = metrics["teacher"]
    text = f"{last}, its teacher {tables.percent(teacher[metric])}"
    if metrics.get("size_bytes") and teacher.get("size_bytes"):
        text += f"; its size is {readable(metrics['size_bytes'])}, its teacher's {readable(teacher['size_bytes'])}"
    return f"{text}."


def _not_finite(run: Run) -> str:
    """A sentence on the logs with a loss or score that is not finite; empty if there are none."""
    steps = [
        row["step"] for row in run.history if any(isinstance(v, float) and not math.isfinite(v) for v in row.values())
    ]
    if not steps:
        return ""
    return (
        f"{run.name}: {len(steps)} of {len(run.history)} logs hold a number that is not finite, the first at step "
        f"{steps[0]}; the curves have gaps there."
    )


def _analyses(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The figures and numbers of each analysis, of every run that has it."""
    names = dict.fromkeys(name for run in runs for name in run.analyses)
    return [
        {
            "name": name,
            "caption": next(run.analyses[name].caption for run in runs if name in run.analyses),
            "parts": [(run.name, run.analyses[name].figures) for run in runs if name in run.analyses],
            "numbers": tables.analysis_numbers(runs, name),
        }
        for name in names
    ]


def _loading(run: Run) -> dict[str, str]:
    """The lines that load a run's model; for an unfinished run its best so far, if there is one."""
    folder = run.folder if run.finished else run.folder / BEST
    if not (folder / "config.json").is_file():
        return {"name": run.name, "python": "", "shell": ""}
    name = run.metrics["task"]
    head = TASKS[name].head if name in TASKS else HEADS.get(name, TEXT_CLASSIFICATION)
    needed, _, plain = head.usage(str(folder)).partition("\n")
    lines = [*[needed] * run.is_student, plain]
    quoted = shlex.quote(str(folder))
    task = str(run.folder / TASK_FILE) if "data" in run.metrics else run.metrics["task"]
    shell = [
        f"tritune evaluate {quoted} --task {shlex.quote(task)}",
        f"tritune predict {quoted} --input {'images/' if head is IMAGE_CLASSIFICATION else 'rows.jsonl'}",
    ]
    return {"name": run.name, "python": "\n".join(lines), "shell": "\n".join(shell[: 1 + head.has_logits])}
