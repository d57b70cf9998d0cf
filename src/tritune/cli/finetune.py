"""`tritune finetune`: a full-precision teacher."""

from typing import Annotated

import typer

from . import options


def finetune(
    model: Annotated[str, typer.Argument(help="Pretrained model: a folder or a hub name.", metavar="MODEL")],
    task: options.AnyTask,
    output: options.Output,
    data: options.Data = None,
    train_file: options.TrainFile = None,
    dev_file: options.DevFile = None,
    columns: options.Columns = None,
    label_column: options.LabelColumn = None,
    problem: options.Problem = None,
    labels: options.Labels = None,
    recipe: Annotated[str, typer.Option(help="Your own recipe, a YAML file.", metavar="FILE")] = "finetune",
    overrides: options.Overrides = None,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    json: options.Json = False,
) -> None:
    """Fine-tune MODEL on a task in full precision: the teacher that `tritune train` distils.

    The checkpoint with the best dev score is kept; metrics.json records its step, and the score of the last one.

    Examples: `tritune finetune bert-base-uncased --task sst2 --data glue/SST-2 --output teacher/`,
    `tritune finetune bert-base-uncased --task text-classification --train-file train.csv --dev-file dev.csv
    --text-columns premise,hypothesis --label-column verdict --output teacher/`
    """
    from ..recipes import FinetuneRecipe, load_recipe

    wanted = load_recipe(recipe, overrides or [], FinetuneRecipe)
    own = options.OwnFiles(train_file, dev_file, columns, label_column, problem, labels)
    options.check_task(task, own)
    options.begin(model)
    from ..compute.devices import this_process
    from ..training.finetune import finetune as run
    from ..training.job import open_job
    from .show import show_finetuned, show_result, show_resumed

    job = open_job(model, options.open_task(task, own), data, wanted, output, overwrite=overwrite, resume=resume)
    metrics = run(job, resume, show_resumed)
    if this_process().is_main_process:
        show_result(metrics, show_finetuned, output, as_json=json)
