"""Options that several subcommands share, and what happens before any of them works."""

from pathlib import Path
from typing import Annotated

import typer

Task = Annotated[str, typer.Option(help="A task of the table: sst2 or SST-2, cola, mrpc, …", metavar="NAME")]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder of the task's original tsv files. Without it, `nyu-mll/glue` is read from the hub."),
]
Output = Annotated[Path, typer.Option(help="Folder to write; it must be empty or new.", metavar="FOLDER")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run that lies in the output folder.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run that was stopped in the output folder, if there is one.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key of the recipe; may be given often.", metavar="KEY=VALUE"),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; everything else is on stderr.")]


def quiet_libraries() -> None:
    """Silence what transformers says about itself; training bars, warnings of ours and errors stay."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
