"""`tritune convert`: a trained student as a packed model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import TrituneError
from . import options


def convert(
    run: Annotated[str, typer.Argument(help="A run of `tritune train`, or any QAT model.", metavar="RUN")],
    output: options.Output,
    best: Annotated[bool, typer.Option("--best", help="Take the run's best student instead of its last.")] = False,
    dtype: Annotated[
        Literal["float32", "float16"],
        typer.Option(help="Precision of what stays float, such as norms and biases."),
    ] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what `convert` wrote there before.")] = False,
    json: options.Json = False,
) -> None:
    """Pack the student of RUN: 2-bit ternary weights with their scales instead of latent float weights.

    The packed model gives the student's outputs bit for bit (in torch; up to rounding in the native engine), loads like
    any other model after `import tritune`, and works with evaluate and predict. It cannot be trained further. The table
    shows where the bytes are.

    Example: `tritune convert run/ --output small/`, then `tritune predict small/ --input texts.txt`
    """
    from ..training.run_folder import BEST, check_free

    source = Path(run) / BEST if best else run
    if best and not Path(source).is_dir():
        raise TrituneError(f"--best: there is no {source}; without it the last student is taken")
    check_free(output, overwrite, inputs=(run,))
    options.begin(run)
    import torch

    from ..deploy.pack import pack_into
    from .show import show_packed, show_result

    show_result(pack_into(source, output, getattr(torch, dtype)), show_packed, as_json=json)
