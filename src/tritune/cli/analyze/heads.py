"""`tritune analyze heads`: attention maps of one sentence."""

import re
from typing import Annotated

import typer

from ...errors import TrituneError
from .. import options
from . import common

_HEAD = r"\s*\d{1,4}\.\d{1,4}\s*"


def heads(
    teacher: common.Teacher,
    students: common.Students,
    task: options.Task,
    data: options.Data = None,
    labels: options.Labels = None,
    row: common.Row = 0,
    text: common.Text = None,
    chosen: Annotated[
        str | None,
        typer.Option(
            "--heads",
            help="Heads as LAYER.HEAD, counted from 0 and separated by commas; by default the four in which the first "
            "student is farthest from the teacher.",
        ),
    ] = None,
    overrides: options.Overrides = None,
    output: common.Output = None,
) -> None:
    """Attention maps of chosen heads for one sentence: teacher, students, and their difference.

    Example: `tritune analyze heads --teacher teacher/ --student run/ --task sst2 --data glue/SST-2 --heads 0.3,5.1`
    """
    pairs = 4 if chosen is None else _pairs(chosen)
    subjects, folder = common.begin(
        "heads", options.Asked(task, labels), data, teacher, students, None, overrides, output
    )
    from ...analysis import heads as analysis
    from ...analysis.heads import plot_heads, summarize_heads

    batch, tokens = subjects.sentence(row, text)
    result = analysis(subjects.models, batch, tokens, pairs)
    common.finish("heads", result, {"heads": plot_heads(result)}, folder, summarize_heads)


def _pairs(chosen: str) -> list[tuple[int, int]]:
    """`"0.3,5.1"` as pairs."""
    if not re.fullmatch(f"{_HEAD}(,{_HEAD})*", chosen):
        raise TrituneError(f"--heads {chosen}: write LAYER.HEAD separated by commas, such as 0.3,5.1")
    return [(int(layer), int(head)) for layer, head in re.findall(r"(\d+)\.(\d+)", chosen)]
