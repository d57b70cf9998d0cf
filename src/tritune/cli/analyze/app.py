"""The group of subcommands behind `tritune analyze`."""

from collections.abc import Callable

import typer

from ..live import with_progress
from ..plugins import with_plugins
from . import attention, curvature, heads, landscape, layers, norms, ranges, sensitivity

app = typer.Typer(
    name="analyze",
    help="Look inside a teacher and its students: every analysis of the papers, as numbers (JSON) and figures.\n\n"
    "Results go to analysis/NAME in the first student's folder, where `tritune report` finds them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
command: Callable[..., None]
for command in (attention.attention, norms.norms, ranges.ranges, layers.layers, heads.heads):
    app.command()(with_plugins(with_progress(command)))
for command in (sensitivity.sensitivity, curvature.curvature, landscape.landscape):
    app.command()(with_plugins(with_progress(command)))
