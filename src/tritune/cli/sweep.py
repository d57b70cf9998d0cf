"""`tritune sweep`: many students of one teacher, to find the recipe that suits it."""

from typing import Annotated

import typer

from . import options


def sweep(
    teacher: Annotated[str, typer.Argument(help="Fine-tuned model: a folder or a hub name.", metavar="TEACHER")],
    space: Annotated[str, typer.Option(help="What is tried: `mixing`, `mixing-grid`, or a YAML file.")],
    task: options.AnyTask,
    output: options.Output,
    data: options.Data = None,
    train_file: options.TrainFile = None,
    dev_file: options.DevFile = None,
    columns: options.Columns = None,
    label_column: options.LabelColumn = None,
    problem: options.Problem = None,
    overrides: options.Overrides = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Database that several processes or machines share: a URL as SQLAlchemy writes it, `redis://…`, or a "
            "file `*.log`. Without it, a file in the output folder.",
            metavar="URL",
        ),
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Points that `random` and `tpe` try.", min=1)] = None,
    stop_after: Annotated[
        int | None, typer.Option("--stop-after", help="Leave after so many points; --resume goes on.", min=1)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the runs and their steps.")] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the sweep in the output folder, or join in, if there is one."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Train TEACHER's students over a space of recipe keys, several seeds each, and find the best recipe.

    The output folder holds sweep.csv (a row per run), sweep.svg and sweep.png, best.yaml (for `tritune train
    --recipe`), and the runs under trials/.

    Example: `tritune sweep teacher/ --space mixing --task mrpc --data glue/MRPC --set max_steps=115 --output sweep/`
    """
    from ..recipes import load_sweeps, parse_overrides

    title, sweeps = load_sweeps(space, parse_overrides(overrides or []), trials)
    own = options.OwnFiles(train_file, dev_file, columns, label_column, problem)
    options.check_task(task, own)
    options.check_models(teacher)
    options.quiet_libraries()
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
