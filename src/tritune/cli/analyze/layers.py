"""`tritune analyze layers`: distance of hidden states."""

from .. import options
from . import common


def layers(
    teacher: common.Teacher,
    students: common.Students,
    task: options.Task,
    data: options.Data = None,
    labels: options.Labels = None,
    rows: common.Rows = 200,
    overrides: options.Overrides = None,
    output: common.Output = None,
) -> None:
    """How far the hidden states of every layer are from the teacher's (EACL 2023, Fig. 2b and 4b).

    Example: `tritune analyze layers --teacher teacher/ --student run/ --task sst2 --data glue/SST-2`
    """
    subjects, folder = common.begin(
        "layers", options.Asked(task, labels), data, teacher, students, rows, overrides, output, untrained=True
    )
    from ...analysis import layers as analysis
    from ...analysis.layers import plot_layers, summarize_layers

    result = analysis(subjects.teacher, subjects.students, subjects.batches("hidden states"))
    common.finish("layers", result, {"layers": plot_layers(result)}, folder, summarize_layers)
