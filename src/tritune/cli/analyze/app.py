"""The group of subcommands behind `tritune analyze`."""

import typer

from . import attention, curvature, heads, landscape, layers, norms, ranges, sensitivity

app = typer.Typer(
    name="analyze",
    help="Look inside a teacher and its students: every analysis of the papers, as numbers (JSON) and as pictures.\n\n"
    "Results go to analysis/NAME in the first student's folder, where `tritune report` finds them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command()(attention.attention)
app.command()(norms.norms)
app.command()(ranges.ranges)
app.command()(layers.layers)
app.command()(heads.heads)
app.command()(sensitivity.sensitivity)
app.command()(curvature.curvature)
app.command()(landscape.landscape)
