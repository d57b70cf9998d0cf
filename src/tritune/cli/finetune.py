"""`tritune finetune`: a full-precision teacher."""

from typing import Annotated

import typer

from . import options


def finetune(
    model: Annotated[str, typer.Argument(help="Pretrained model: a folder or a hub name.", metavar="MODEL")],
    task: options.Task,
    output: options.Output,
    data: options.Data = None,
    recipe: Annotated[str, typer.Option(help="A YAML file of one's own.", metavar="FILE")] = "finetune",
    overrides: options.Overrides = None,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    json: options.Json = False,
) -> None:
    """Fine-tune MODEL on a task in full precision: the teacher that `tritune train` distils.

    The checkpoint with the best dev score is kept; metrics.json says which, and what the last one scored.

    Example: `tritune finetune bert-base-uncased --task sst2 --data glue/SST-2 --output teacher/`
    """
    options.quiet_libraries()
    from ..recipes import FinetuneRecipe, load_recipe
    from ..tasks import get_task
    from ..training.finetune import finetune as run
    from ..training.job import open_job
    from .show import show_finetuned

    recipe = load_recipe(recipe, overrides or [], FinetuneRecipe)
    job = open_job(model, get_task(task), data, recipe, output, overwrite=overwrite, resume=resume)
    show_finetuned(run(job, resume), output, as_json=json)
