"""`tritune analyze norms`: what tokens send through the heads."""

from typing import Annotated

import typer

from ...errors import TrituneError
from .. import options
from . import common


def norms(
    teacher: common.Teacher,
    students: common.Students,
    task: options.Task,
    data: options.Data = None,
    labels: options.Labels = None,
    rows: common.Rows = 200,
    token: Annotated[str | None, typer.Option(help="Add a group of its own for this token.")] = None,
    group: Annotated[
        str | None,
        typer.Option(help="Group of the heat maps: cls, sep, punctuation, other, all, or your --token."),
    ] = None,
    overrides: options.Overrides = None,
    output: common.Output = None,
) -> None:
    """What tokens send through the heads: attention, ‖f(x)‖, and their product (Kobayashi et al.; EMNLP 2022, Fig. 6).

    Heat maps of every head for one group of tokens, and curves over the layers for every group.

    Example: `tritune analyze norms --teacher teacher/ --student run/ --task sst2 --data glue/SST-2 --group sep`
    """
    if group is not None and group not in ("cls", "sep", "punctuation", "other", "all", token):
        raise TrituneError(f"--group {group}: known are cls, sep, punctuation, other, all, and the token of --token")
    subjects, folder = common.begin(
        "norms", options.Asked(task, labels), data, teacher, students, rows, overrides, output
    )
    from ...analysis import norms as analysis
    from ...analysis.norms import plot_norm_curves, plot_norm_maps, summarize_norms, token_groups

    if "input_ids" not in subjects.data.dev.column_names:
        raise TrituneError(f"{subjects.task.title}: norms are shown by groups of tokens, which images do not have")
    groups = token_groups(subjects.tokenizer, subjects.teacher.config.vocab_size, token)
    result = analysis(subjects.models, subjects.batches("norms"), groups)
    group = group or token or ("sep" if "sep" in result.groups else "all")
    if group not in result.groups:
        raise TrituneError(f"the rows have no token of the group {group}; they have {', '.join(result.groups)}")
    figures = {"norms": plot_norm_maps(result, group), "norm_curves": plot_norm_curves(result)}
    common.finish("norms", result, figures, folder, summarize_norms)
