"""`tritune analyze attention`: distance of attention maps."""

from typing import Annotated

import typer

from .. import options
from . import common


def attention(
    teacher: common.Teacher,
    students: common.Students,
    task: options.Task,
    data: options.Data = None,
    labels: options.Labels = None,
    rows: common.Rows = 200,
    top_k: Annotated[int, typer.Option(help="Of the cover-length ratio.", min=1)] = 5,
    overrides: options.Overrides = None,
    output: common.Output = None,
) -> None:
    """How far every head's attention map is from the teacher's: KL, ranking loss, cover-length ratio, cosine.

    The students are shown beside the teacher quantized like the first of them and not trained (EMNLP 2022, Fig. 4).

    Example: `tritune analyze attention --teacher teacher/ --student run/ --student run2/ --task sst2 --data glue/SST-2`
    """
    subjects, folder = common.begin(
        "attention", options.Asked(task, labels), data, teacher, students, rows, overrides, output, untrained=True
    )
    from ...analysis import attention as analysis
    from ...analysis.attention import plot_attention, summarize_attention

    result = analysis(subjects.teacher, subjects.students, subjects.batches("attention maps"), top_k)
    common.finish("attention", result, {"attention": plot_attention(result)}, folder, summarize_attention)
