"""`tritune sweep`: many students of one teacher, to find the best recipe."""

from typing import Annotated

import typer

from . import options


def sweep(
    teacher: Annotated[str, typer.Argument(help="Fine-tuned model: a folder or a hub name.", metavar="TEACHER")],
    space: Annotated[str, typer.Option(help="Search space: `mixing`, `mixing-grid`, or a YAML file.")],
    task: options.AnyTask,
    output: options.Output,
    data: options.Data = None,
    train_file: options.TrainFile = None,
    dev_file: options.DevFile = None,
    columns: options.Columns = None,
    label_column: options.LabelColumn = None,
    problem: options.Problem = None,
    labels: options.Labels = None,
    overrides: options.Overrides = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Database shared by several processes or machines: an SQLAlchemy URL, `redis://…`, or a `*.log` file. "
            "By default a file in the output folder.",
            metavar="URL",
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Number of points that `random` and `tpe` sample.", min=1)] = None,
    stop_after: Annotated[
        int | None, typer.Option("--stop-after", help="Stop after this many points; continue with --resume.", min=1)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the runs and their steps.")] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume or join the sweep in the output folder, if there is one."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Train students of TEACHER over a space of recipe keys, with several seeds per point, and find the best recipe.

    The output folder holds sweep.csv (one row per run), sweep.svg and sweep.png, best.yaml (for `tritune train
    --recipe`), and the runs under trials/.

    Example: `tritune sweep teacher/ --space mixing --task mrpc --data glue/MRPC --set max_steps=115 --output sweep/`
    """
    from ..recipes import load_sweeps, parse_overrides

    title, sweeps = load_sweeps(space, parse_overrides(overrides or []), trials)
    own = options.OwnFiles(train_file, dev_file, columns, label_column, problem, labels)
    options.check_task(task, own)
    options.begin(teacher)
    from ..training.sweep import open_sweep, run_sweep
    from ..training.sweep_results import write_results
    from .show import show_sweep, show_sweep_plan

    job = open_sweep(teacher, options.open_task(task, own, teacher), data, title, sweeps, output, storage, resume)
    if dry_run:
        show_sweep_plan(job, as_json=json)
        return

    def report() -> None:
        write_results(job, final=False)

    run_sweep(job, stop_after, report)
    show_sweep(write_results(job), output, as_json=json)
