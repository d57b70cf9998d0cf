"""`tritune report`: runs compared on one page."""

from pathlib import Path
from typing import Annotated

import typer

from . import options


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders of one task, finished or not; or the folder of a demo or of a compression.",
            metavar="RUN ...",
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="HTML file to write; an existing report is replaced.", metavar="FILE")
    ] = Path("report.html"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file even if it is not a report.")
    ] = False,
) -> None:
    """Compare runs in one HTML file: scores, loss curves, analyses, recipes and library versions.

    The report of a compression begins with its table, what the file was taken for, its classes and its worst mistakes.

    The file is self-contained and opens offline. It includes the analyses that `tritune analyze` wrote to the folders.

    Example: `tritune report demo/ternarybert-block demo/ti-g --output report.html`
    """
    options.begin()
    from ..compression.report import is_compression, write_compression_report
    from ..errors import TrituneError, readable
    from ..report.page import write_report
    from ..report.runs import other_dev_rows
    from .show import show_notes

    if compressions := [folder for folder in runs if is_compression(folder)]:
        if len(runs) > 1:
            first = compressions[0]
            raise TrituneError(f"{first}: a compression has a report of its own; give its runs in {first}/students")
        read = write_compression_report(runs[0], output, overwrite)
    else:
        read = write_report(runs, output, overwrite)
    show_notes(other_dev_rows(read))
    analyses = sum(len(run.analyses) for run in read)
    counts = f"{len(read)} run{'s' * (len(read) > 1)}, {analyses} {'analysis' if analyses == 1 else 'analyses'}"
    typer.echo(f"Written to {output}: {counts}, {readable(output.stat().st_size)}")
