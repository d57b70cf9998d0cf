"""`tritune train`: a ternary student from a teacher."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import options


def train(
    teacher: Annotated[str, typer.Argument(help="Fine-tuned model: a folder or a hub name.", metavar="TEACHER")],
    task: options.AnyTask,
    output: options.Output,
    data: options.Data = None,
    train_file: options.TrainFile = None,
    dev_file: options.DevFile = None,
    columns: options.Columns = None,
    label_column: options.LabelColumn = None,
    problem: options.Problem = None,
    labels: options.Labels = None,
    unlabelled: Annotated[
        Path | None,
        typer.Option(
            help="Train on the rows of this file instead, whose labels, if it has any, are not read: any table, or a "
            ".txt file with a text per line; for images a folder.",
            metavar="FILE",
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(help="A recipe that `tritune recipes` lists, or a YAML file.")] = "tritune",
    overrides: options.Overrides = None,
    phase: Annotated[Literal["one", "two"] | None, typer.Option(help="Run only one of the two steps.")] = None,
    start: Annotated[
        Path | None, typer.Option("--from", help="Start from this QAT student instead of the quantized teacher.")
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(help="Start from this float model, possibly shallower, instead of the teacher.", metavar="MODEL"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the resolved recipe, the phases, and what is quantized.")
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option("--push-to-hub", help="Upload the last student to this hub repository.", metavar="NAME"),
    ] = None,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    json: options.Json = False,
) -> None:
    """Distil TEACHER into a student with 2-bit weights and 8-bit activations.

    The default recipe fits one block after another to the teacher's; the others train the whole model (QAT). The output
    folder holds the last student, `best/`, the resolved recipe.yaml, metrics.json, history.jsonl and a model card. Load
    the student with any Auto class after `import tritune`.

    Examples: `tritune train teacher/ --task sst2 --data glue/SST-2 --output run/`,
    `tritune train teacher/ --task sst2 --recipe ti-g --set max_steps=1000 --output run/`,
    `tritune train teacher/ --task teacher/task.yaml --output run/` for a teacher fine-tuned on your own files.
    """
    from ..modeling.quantization import Quantization
    from ..recipes import load_recipe

    wanted = load_recipe(recipe, overrides or [])
    own = options.OwnFiles(train_file, dev_file, columns, label_column, problem, labels)
    options.check_task(task, own, trains=unlabelled is None)
    options.begin(teacher, student, start)
    from ..checkpoints.prepare import prepare
    from ..compute.devices import this_process
    from ..tasks.models import load_student
    from ..training.card import check_login, push
    from ..training.job import open_job
    from ..training.run import plan, run
    from .show import show_dry_run, show_plan, show_result, show_resumed, show_run, show_stage

    job = open_job(
        teacher,
        options.open_task(task, own, teacher, trains=unlabelled is None),
        data,
        wanted,
        output,
        overwrite=overwrite,
        resume=resume,
        other_inputs=(start,) if start else (),
        student_source=student,
        unlabelled=unlabelled,
    )
    phases = plan(job, phase)
    quantization = job.recipe.section(Quantization)
    begun = load_student(start, job.task, job.float_student, quantization) if start else None
    if dry_run:
        show_dry_run(job.recipe, phases, begun or prepare(job.float_student, quantization))
        return
    if push_to_hub:
        check_login()
    show_plan(job.recipe, phases)
    metrics = run(job, phases, begun, str(start or ""), resume, resumed=show_resumed, reconstructed=show_stage)
    if not this_process().is_main_process:
        return
    show_result(metrics, show_run, output, as_json=json)
    if push_to_hub:
        push(output, metrics, job.task, job.recipe, push_to_hub)
