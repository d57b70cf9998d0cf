"""`tritune`: the entry point; bad input gives one line on stderr and exit code 2."""

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from .. import errors
from ..compute.devices import keep_freed_memory
from . import (
    augment,
    bench,
    compress,
    convert,
    demo,
    doctor,
    evaluate,
    export,
    finetune,
    predict,
    recipes,
    report,
    shrink,
    sweep,
    train,
    web,
)
from .analyze.app import app as analyze
from .live import exit_code, with_progress
from .plugins import with_plugins

app = typer.Typer(
    name="tritune",
    help="Fine-tuned Transformers with ternary weights and 8-bit activations.\n\n"
    "One command makes a small model of one file (compress). Or step by step: "
    "fine-tune a teacher (finetune) or take any fine-tuned checkpoint, distil a student (train), score it (evaluate) "
    "and use it (predict); look inside (analyze, report); pack it, export it or make it a web page (convert, export, "
    "web) and measure its speed (bench). `tritune demo` runs all this on synthetic data, offline, in minutes; "
    "`tritune doctor` says what would be faster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
command: Callable[..., None]
for command in (
    compress.compress,
    augment.augment,
    finetune.finetune,
    shrink.shrink,
    train.train,
    sweep.sweep,
    convert.convert,
):
    app.command()(with_plugins(with_progress(command)))
for command in (evaluate.evaluate, predict.predict, export.export, web.web, bench.bench, report.report, demo.demo):
    app.command()(with_plugins(with_progress(command)))
for command in (recipes.recipes, doctor.doctor):
    app.command()(with_plugins(command))
app.add_typer(analyze)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(metadata.version("tritune"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line given to this process."""
    keep_freed_memory()
    try:
        app()
    except errors.TrituneError as error:
        from rich.console import Console

        message = " ".join(str(error).split())
        Console(stderr=True, soft_wrap=True).print(f"error: {message}", style="red", markup=False, highlight=False)
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
