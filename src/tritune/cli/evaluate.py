"""`tritune evaluate`: the score of one model."""

from typing import Annotated

import typer

from . import options


def evaluate(
    model: Annotated[str, typer.Argument(help="A run, a teacher or any fine-tuned model.", metavar="MODEL")],
    task: options.AnyTask,
    data: options.Data = None,
    dev_file: options.DevFile = None,
    columns: options.Columns = None,
    label_column: options.LabelColumn = None,
    problem: options.Problem = None,
    labels: options.Labels = None,
    teacher: Annotated[str | None, typer.Option(help="Also measure how close MODEL is to this teacher.")] = None,
    overrides: options.Overrides = None,
    json: options.Json = False,
) -> None:
    """Score MODEL on the dev set of a task, with the sequence length, padding and batch size of its training.

    These are read from the recipe.yaml next to it, or else from the task table; `--set` overrides them. With per-tensor
    activation scales a score depends on the batch size.

    Examples: `tritune evaluate run/ --task sst2 --data glue/SST-2 --json`,
    `tritune evaluate run/ --task run/task.yaml --dev-file test.csv`
    """
    from ..recipes import check_evaluation_keys

    own = options.OwnFiles(None, dev_file, columns, label_column, problem, labels)
    check_evaluation_keys(overrides or [])
    options.check_task(task, own, trains=False)
    options.begin(model, teacher)
    from ..inference.evaluate import evaluate_source
    from ..tasks.data.rows_record import selecting_rows
    from ..training.run_folder import metrics_beside
    from .show import show_other_rows, show_result, show_scores

    asked = options.open_task(task, own, model, trains=False)
    scores = evaluate_source(model, asked, data, overrides or [], teacher)
    show_other_rows(scores, selecting_rows(metrics_beside(model)))
    show_result(scores, show_scores, as_json=json)
