"""What the analyses share on the command line: models, rows, losses, and where results go."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import TrituneError
from .. import options

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ...analysis.subjects import Subjects

Teacher = Annotated[str, typer.Option(help="The full-precision model: a folder or a hub name.", metavar="MODEL")]
Students = Annotated[
    list[str], typer.Option("--student", help="A student of that teacher; may be given often.", metavar="MODEL")
]
Rows = Annotated[int, typer.Option(help="Rows of the dev set, from its beginning.", min=1)]
Row = Annotated[int, typer.Option(help="The row of the dev set to look at, counted from 0.", min=0)]
Text = Annotated[
    str | None, typer.Option(help="A sentence of your own in place of a row; a tab parts a pair.", metavar="TEXT")
]
Output = Annotated[
    Path | None,
    typer.Option(help="Folder to write; analysis/NAME in the first student's folder without it.", metavar="FOLDER"),
]

# Of the analyses that look at a loss.
Models = Annotated[
    list[str],
    typer.Option("--model", help="A model to look at, quantized or not; may be given often.", metavar="MODEL"),
]
LossTeacher = Annotated[
    str | None, typer.Option("--teacher", help="What a distillation loss compares with.", metavar="MODEL")
]
LossName = Annotated[
    str,
    typer.Option(
        "--loss", help="ground_truth (the task's own) or a distillation loss: logits, hidden_states, attention_map, …"
    ),
]
LossAverage = Annotated[
    str, typer.Option("--loss-average", help="Whether distillation losses average over padding: padded or valid.")
]
Patterns = Annotated[
    list[str] | None,
    typer.Option("--parameters", help="Only parameters of such names, `*.query.*` say; may be given often."),
]


def begin(
    name: str,
    task: str,
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
        task, data, teacher, rows, untrained: see `open_subjects`.
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

    options.check_task(task)
    check_evaluation_keys(overrides or [])
    if output is None and not Path(models[0]).is_dir():
        raise TrituneError(f"{models[0]}: not a local folder to write into; give --output")
    folder = output or Path(models[0]) / ANALYSIS / name
    if folder.exists() and not folder.is_dir():
        raise TrituneError(f"{folder}: this is a file; --output takes a folder")
    options.check_models(*models, *checkpoints, teacher)
    options.quiet_libraries()
    from ...analysis.subjects import open_subjects
    from ...tasks.registry import get_task

    subjects = open_subjects(get_task(task), data, teacher, models, rows, overrides or [], untrained=untrained)
    return subjects, folder


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
