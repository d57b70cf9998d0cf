"""What the analyses share on the command line: models, rows, and where results go."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import TrituneError
from .. import options

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def begin(
    name: str, task: str, models: Sequence[str | None], output: Path | None, overrides: Sequence[str] | None
) -> Path:
    """Check what the options of an analysis say, as far as that is known before anything heavy is imported.

    Args:
        name: of the analysis.
        task: of the table, or a task file.
        models: folders or hub names, the one that results go beside first; None for those that are not given.
        output: see `output_folder`.
        overrides: `key=value` for the recipe beside a model.

    Returns:
        The folder of `output_folder`.

    Raises:
        TrituneError: one of them cannot be used.
    """
    from ...recipes import check_evaluation_keys

    options.check_task(task)
    check_evaluation_keys(overrides or [])
    folder = output_folder(output, models[0], name)
    options.check_models(*models)
    options.quiet_libraries()
    return folder


def output_folder(output: Path | None, first_model: str, name: str) -> Path:
    """Where an analysis writes: what was asked for, or a folder that `tritune report` looks into.

    Raises:
        TrituneError: the first model is no local folder and no output was asked for, or that is a file.
    """
    from ...training.run_folder import ANALYSIS

    if output is None and not Path(first_model).is_dir():
        raise TrituneError(f"{first_model}: not a local folder to write into; give --output")
    folder = output or Path(first_model) / ANALYSIS / name
    if folder.exists() and not folder.is_dir():
        raise TrituneError(f"{folder}: this is a file; --output takes a folder")
    return folder


def finish(
    name: str,
    result: Any,
    figures: Mapping[str, "Figure"],
    folder: Path,
    summary: Callable[[Any], Sequence[Sequence[str]]],
) -> None:
    """Write a result and its figures, and print its summary.

    Args:
        name: of the analysis.
        result: what it returned.
        figures: file name to figure.
        folder: where they go.
        summary: the result as rows of a table, the header first.
    """
    from ...analysis.result import write_result
    from ..show import show_table

    write_result(name, result, figures, folder)
    header, *rows = summary(result)
    show_table(header, rows, f"Written to {folder}: {name}.json, {', '.join(f'{title}.png' for title in figures)}")
