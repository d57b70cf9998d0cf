"""`tritune analyze ranges`: what an 8-bit code must cover."""

from typing import Annotated, Literal

import typer

from .. import options
from . import common


def ranges(
    teacher: common.Teacher,
    students: common.Students,
    task: options.Task,
    data: options.Data = None,
    labels: options.Labels = None,
    tensor: Annotated[
        Literal["block_output", "context", "projection"], typer.Option(help="Tensor to look at, in every layer.")
    ] = "block_output",
    row: common.Row = 0,
    text: common.Text = None,
    rows: Annotated[
        int | None, typer.Option(help="Extremes per position over this many dev rows, instead of one sentence.", min=1)
    ] = None,
    overrides: options.Overrides = None,
    output: common.Output = None,
) -> None:
    """Smallest and largest entries by layer and token, teacher against students (EMNLP 2022, Fig. 5).

    Example: `tritune analyze ranges --teacher teacher/ --student run/ --task sst2 --data glue/SST-2 --row 3`
    """
    subjects, folder = common.begin(
        "ranges", options.Asked(task, labels), data, teacher, students, rows, overrides, output
    )
    from ...analysis import ranges as analysis
    from ...analysis.ranges import plot_ranges, summarize_ranges

    if rows is None:
        batch, tokens = subjects.sentence(row, text)
        result = analysis(subjects.models, [batch], tensor, tokens)
    else:
        result = analysis(subjects.models, subjects.batches("ranges"), tensor)
    common.finish("ranges", result, {"ranges": plot_ranges(result)}, folder, summarize_ranges)
