"""`tritune analyze curvature`: the Hessian's eigenvalues, trace and spectrum."""

from typing import TYPE_CHECKING, Annotated

import typer

from ...distil.choices import check_loss
from .. import options
from . import common

if TYPE_CHECKING:
    from ...analysis.curvature import Curvature

_LANCZOS_STEPS = 60


def curvature(
    models: common.Models,
    task: options.Task,
    data: options.Data = None,
    labels: options.Labels = None,
    teacher: common.LossTeacher = None,
    loss: common.LossName = "ground_truth",
    loss_average: common.LossAverage = "padded",
    parameters: common.Patterns = None,
    top: Annotated[int, typer.Option(help="Number of eigenvalues per batch, those of largest magnitude.", min=1)] = 5,
    batches: Annotated[int, typer.Option(help="Number of batches, from the beginning of the dev set.", min=1)] = 5,
    batch_size: Annotated[int, typer.Option(help="Rows per batch.", min=1)] = 8,
    trace_samples: Annotated[
        int, typer.Option(help="Hutchinson samples of the trace per batch, at least 2; 0 for no trace.", min=0)
    ] = 5,
    density: Annotated[
        bool,
        typer.Option("--density", help=f"Also the whole spectrum, by {_LANCZOS_STEPS} Lanczos steps per batch."),
    ] = False,
    tolerance: Annotated[
        float,
        typer.Option(
            help="An eigenvalue counts as found when its residual is below this share of it. Its error is about the "
            "square of that (1e-4 for 0.01), and larger where eigenvalues are close together."
        ),
    ] = 0.01,
    minutes: common.Minutes = None,
    double: Annotated[bool, typer.Option("--double", help="Compute in float64.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random vectors.", min=0)] = 0,
    overrides: options.Overrides = None,
    output: common.Output = None,
) -> None:
    """Curvature of the loss around one or more models: eigenvalues of the Hessian, its trace and its spectrum.

    For a quantized model it is the Hessian of the straight-through surrogate, the function whose gradient training
    follows. The table shows means over the batches. Memory is needed for 2 * top + 1 vectors (at least
    20) of 4 bytes per parameter in use: for large models, select some parameters.

    Every batch is kept as it is measured: the same command goes on where it was stopped.

    Examples: `tritune analyze curvature --model teacher/ --model run/ --task sst2 --data SST-2/`,
    `… --parameters "*.query.*" --parameters "*.key.*" --loss logits --teacher teacher/`
    """
    check_loss(loss, teacher, loss_average)
    keys = [*(overrides or []), f"per_device_eval_batch_size={batch_size}"]
    subjects, folder = common.begin(
        "curvature", options.Asked(task, labels), data, teacher, models, batches * batch_size, keys, output
    )
    from ...analysis.curvature import curvature as analyse
    from ...analysis.curvature_plots import plot_curvature

    if double:
        for model in subjects.models.values():
            model.double()
    parts = common.kept_parts("curvature", folder)
    read = list(subjects.batches("read", labels=True))
    result = analyse(
        subjects.students,
        read,
        loss=loss,
        teacher=subjects.models.get("teacher"),
        average=loss_average,
        parameters=parameters or [],
        top=top,
        trace_samples=trace_samples,
        density_steps=_LANCZOS_STEPS if density else 0,
        tolerance=tolerance,
        seed=seed,
        minutes=minutes,
        parts=parts,
        say=common.say,
    )
    common.finish("curvature", result, {"curvature": plot_curvature(result)}, folder, _summary)
    if len(result.rows) == len(read):  # with more --minutes, those that were left out may follow
        parts.forget()


def _summary(result: "Curvature") -> list[list[str]]:
    """One row per model: means over the batches."""
    table = [["model", "loss", "Hessian of", "largest", "smallest", "trace"]]
    for name, model in result.models.items():
        of = "surrogate" if model.surrogate else "loss"
        trace = "" if model.trace is None else f"{model.trace:.4g} ± {model.trace_standard_error:.3g}"
        ends = (f"{end.mean():.4g}" for end in (model.largest, model.smallest))
        table.append([name, f"{model.losses.mean():.4f}", of, *ends, trace])
    return table
