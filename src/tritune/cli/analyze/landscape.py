"""`tritune analyze landscape`: the loss on a plane through the weights."""

from typing import TYPE_CHECKING, Annotated

import typer

from ...distil.choices import check_loss
from ...errors import TrituneError
from .. import options
from . import common

if TYPE_CHECKING:
    from ...analysis.landscape import Landscape


def landscape(
    models: common.Models,
    task: options.Task,
    data: options.Data = None,
    labels: options.Labels = None,
    teacher: common.LossTeacher = None,
    loss: common.LossName = "ground_truth",
    loss_average: common.LossAverage = "padded",
    parameters: common.Patterns = None,
    rows: common.Rows = 32,
    points: Annotated[int, typer.Option(help="Grid points per axis; an odd number.", min=3)] = 15,
    extent: Annotated[
        float,
        typer.Option("--range", help="Random directions go from -RANGE to +RANGE, in lengths of the weights."),
    ] = 1.0,
    checkpoints: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoint",
            help="Instead of random directions, the plane through the model and two or more of these checkpoints.",
            metavar="MODEL",
        ),
    ] = None,
    minutes: common.Minutes = None,
    seed: Annotated[int, typer.Option(help="Seed of the random directions.", min=0)] = 0,
    overrides: options.Overrides = None,
    output: common.Output = None,
) -> None:
    """Loss around one or more models, along filter-normalized random directions or through checkpoints.

    Every line of the grid is kept as it is computed: the same command goes on where it was stopped.

    Examples: `tritune analyze landscape --model teacher/ --model run/ --task sst2 --data SST-2/`,
    `… --model run/ --checkpoint run/best --checkpoint other-run/`
    """
    sources = checkpoints or []
    check_loss(loss, teacher, loss_average)
    if sources and len(models) > 1:
        raise TrituneError("--checkpoint: the plane goes through one --model; give the others as checkpoints")
    subjects, folder = common.begin(
        "landscape", options.Asked(task, labels), data, teacher, models, rows, overrides, output, checkpoints=sources
    )
    from ...analysis.landscape import landscape as analyse
    from ...analysis.landscape_plots import plot_contours, plot_surfaces
    from ...analysis.subjects import short_names
    from ...tasks.models import load_model

    parts = common.kept_parts("landscape", folder)
    result = analyse(
        subjects.students,
        list(subjects.batches("read", labels=True)),
        loss=loss,
        teacher=subjects.models.get("teacher"),
        average=loss_average,
        parameters=parameters or [],
        points=points,
        extent=extent,
        seed=seed,
        checkpoints={
            name: dict(load_model(source, subjects.task).named_parameters())
            for name, source in zip(short_names([*models, *sources])[len(models) :], sources, strict=True)
        },
        minutes=minutes,
        parts=parts,
        say=common.say,
    )
    figures = {"landscape": plot_contours(result), "landscape_surface": plot_surfaces(result)}
    common.finish("landscape", result, figures, folder, _summary)
    parts.forget()


def _summary(result: "Landscape") -> list[list[str]]:
    """One row per model or checkpoint."""
    if result.checkpoints:
        table = [["checkpoint", "loss", "x", "y", "off the plane"]]
        for mark in result.checkpoints:
            table.append([mark.name, *(f"{value:z.4f}" for value in (mark.loss, mark.x, mark.y, mark.distance))])
        return table
    import numpy as np

    table = [["model", "loss", "lowest", "highest"]]
    for name, losses in result.losses.items():
        finite = losses[np.isfinite(losses)]
        table.append([name, *(f"{value:.4f}" for value in (result.centre[name], finite.min(), finite.max()))])
    return table
