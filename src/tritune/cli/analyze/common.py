"""What the analyses share on the command line: models, rows, losses, and where results go."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import TrituneError
from .. import options

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ...analysis.kept import Kept
    from ...analysis.subjects import Subjects

Teacher = Annotated[str, typer.Option(help="The full-precision model: a folder or a hub name.", metavar="MODEL")]
Students = Annotated[
    list[str], typer.Option("--student", help="A student of that teacher; may be repeated.", metavar="MODEL")
]
Rows = Annotated[int, typer.Option(help="Number of dev rows, from the beginning.", min=1)]
Row = Annotated[int, typer.Option(help="Index of the dev row to look at, from 0.", min=0)]
Text = Annotated[
    str | None, typer.Option(help="Your own sentence instead of a row; a tab separates a pair.", metavar="TEXT")
]
Output = Annotated[
    Path | None,
    typer.Option(help="Output folder; by default analysis/NAME in the first student's folder.", metavar="FOLDER"),
]

# Of the analyses that look at a loss.
Models = Annotated[
    list[str],
    typer.Option("--model", help="A model to analyze, quantized or not; may be repeated.", metavar="MODEL"),
]
LossTeacher = Annotated[
    str | None, typer.Option("--teacher", help="The teacher that a distillation loss compares with.", metavar="MODEL")
]
LossName = Annotated[
    str,
    typer.Option(
        "--loss", help="ground_truth (the task's own) or a distillation loss: logits, hidden_states, attention_map, …"
    ),
]
LossAverage = Annotated[
    str, typer.Option("--loss-average", help="Average distillation losses over padding too (padded), or not (valid).")
]
Patterns = Annotated[
    list[str] | None,
    typer.Option("--parameters", help="Only parameters with matching names, such as `*.query.*`; may be repeated."),
]
Minutes = Annotated[
    float | None,
    typer.Option(help="Do as much as fits into so many minutes, and say how much that is.", min=0.01, metavar="N"),
]


def begin(
    name: str,
    asked: options.Asked,
    data: Path | None,
    teacher: str | None,
    models: Sequence[str],
    rows: int | None,
    overrides: Sequence[str] | None,
    output: Path | None,
    *,
    checkpoints: Sequence[str] = (),
    untrained: bool = False,
) -> tuple["Subjects", Path]:
    """Check the options of an analysis before anything heavy is imported, then load what it looks at.

    Args:
        name: of the analysis.
        asked: the task, and the names of its labels.
        data, teacher, rows, untrained: see `open_subjects`.
        models: its students; results go beside the first of them.
        overrides: `key=value` for the recipe beside a model.
        output: folder to write; None is `analysis/NAME` in the first model's folder, where `tritune report` looks.
        checkpoints: further models that the caller loads.

    Returns:
        Models and rows, and the folder for the results.

    Raises:
        TrituneError: one of the options cannot be used.
    """
    from ...recipes import check_evaluation_keys
    from ...training.run_folder import ANALYSIS

    options.check_task(asked.task, asked.own, trains=False)
    check_evaluation_keys(overrides or [])
    if output is None and not Path(models[0]).is_dir():
        raise TrituneError(f"{models[0]}: not a local folder to write into; give --output")
    folder = output or Path(models[0]) / ANALYSIS / name
    if folder.exists() and not folder.is_dir():
        raise TrituneError(f"{folder}: this is a file; --output takes a folder")
    options.begin(*models, *checkpoints, teacher)
    from ...analysis.subjects import open_subjects

    task = options.open_task(asked.task, asked.own, teacher or models[0], trains=False)
    subjects = open_subjects(task, data, teacher, models, rows, overrides or [], untrained=untrained)
    return subjects, folder


def kept_parts(name: str, folder: Path) -> "Kept":
    """What an earlier call of the analysis `name` left in `folder` when it was stopped, and room for more."""
    from ...analysis.kept import Kept

    return Kept(folder / f"{name}.parts.jsonl")


def say(line: str) -> None:
    """A line on stderr, about the work ahead."""
    from ..show import show_notes

    show_notes([line])


def finish(
    name: str,
    result: Any,
    figures: Mapping[str, "Figure"],
    folder: Path,
    summary: Callable[[Any], Sequence[Sequence[str]]],
) -> None:
    """Write a result and its figures, by file name, into `folder`, and print its `summary`, the header first."""
    from ...analysis.result import write_result
    from ..show import show_table

    write_result(name, result, figures, folder)
    header, *rows = summary(result)
    show_table(header, rows, f"Written to {folder}: {name}.json, {', '.join(f'{title}.png' for title in figures)}")
