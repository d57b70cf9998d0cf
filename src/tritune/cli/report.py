"""`tritune report`: runs compared on one page."""

from pathlib import Path
from typing import Annotated

import typer

from . import options


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders of one task, finished or not; or a demo's folder.", metavar="RUN ..."),
    ],
    output: Annotated[
        Path, typer.Option(help="HTML file to write; an existing report is replaced.", metavar="FILE")
    ] = Path("report.html"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file even if it is not a report.")
    ] = False,
) -> None:
    """Compare runs in one HTML file: scores, loss curves, analyses, recipes and library versions.

    The file is self-contained and opens offline. It includes the analyses that `tritune analyze` wrote to the folders.

    Example: `tritune report demo/ternarybert-block demo/ti-g --output report.html`
    """
    options.begin()
    from ..errors import readable
    from ..report.page import write_report
    from ..report.runs import other_dev_rows
    from .show import show_notes

    read = write_report(runs, output, overwrite)
    show_notes(other_dev_rows(read))
    analyses = sum(len(run.analyses) for run in read)
    counts = f"{len(read)} run{'s' * (len(read) > 1)}, {analyses} {'analysis' if analyses == 1 else 'analyses'}"
    typer.echo(f"Written to {output}: {counts}, {readable(output.stat().st_size)}")
