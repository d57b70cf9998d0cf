"""How curved a loss is: Hessian eigenvalues batch by batch, the trace, and the whole spectrum as a density.

The figures are those of EACL 2023 (Fig. 5) and EMNLP 2022 (Fig. 3): the top eigenvalues of the Hessian of each of many
batches, as one density with its positive and its negative tail. A quantized student is piecewise constant in its
weights, so its own second derivative is zero almost everywhere; what is measured is the Hessian of its straight-through
surrogate, the function whose gradient training follows (see `hessian.Hessian`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..checkpoints.load import is_quantized
from ..compute.held import weights_held
from ..distil.choices import TASK_LOSS, check_loss
from ..errors import TrituneError
from ..modeling.instrument import instrument
from ..modeling.modes import evaluation_mode
from .hessian import Hessian, both_ends, hutchinson, rademacher, top_eigenvalues
from .lanczos import SpectralDensity, lanczos, spectral_density
from .objective import objective
from .parameters import differentiated, select_parameters
from .subjects import Batch, row_count


@dataclass(frozen=True)
class ModelCurvature:
    """The curvature of one model.

    Attributes:
        surrogate: whether it is that of a quantized model's straight-through surrogate.
        parameters: number of parameters that the loss was differentiated by.
        losses: (batches,), the loss of each batch.
        eigenvalues: (batches, top), of each batch those of largest magnitude, largest first.
        smallest, largest: (batches,), both ends of each batch's spectrum.
        traces: (batches, samples), Hutchinson estimates; no column if none were requested.
        trace: their mean, the trace of the batches' mean Hessian; None without estimates.
        trace_standard_error: of that mean for these batches; reduced by more samples, not by more batches.
        density: the mean density over the batches, or None.
        products: number of Hessian-vector products.
    """

    surrogate: bool
    parameters: int
    losses: np.ndarray
    eigenvalues: np.ndarray
    smallest: np.ndarray
    largest: np.ndarray
    traces: np.ndarray
    trace: float | None
    trace_standard_error: float | None
    density: SpectralDensity | None
    products: int


@dataclass(frozen=True)
class Curvature:
    """The curvature of several models on the same batches.

    Attributes:
        loss: the loss differentiated, a name of `distil.losses.LOSSES`.
        average: `padded` or `valid`, what that loss averages over.
        patterns: of the parameters it was differentiated by; empty for all.
        rows: (batches,), rows of each batch.
        seed: of every random vector; all models use the same vectors.
        models: by name.
    """

    loss: str
    average: str
    patterns: list[str]
    rows: list[int]
    seed: int
    models: dict[str, ModelCurvature]


def curvature(
    models: Mapping[str, PreTrainedModel],
    batches: Sequence[Batch],
    *,
    loss: str = TASK_LOSS,
    teacher: PreTrainedModel | None = None,
    average: str = "padded",
    parameters: Sequence[str] = (),
    top: int = 10,
    trace_samples: int = 0,
    density_steps: int = 0,
    seed: int = 0,
) -> Curvature:
    """The Hessian of a loss with respect to the parameters: its eigenvalues per batch, trace and spectral density.

    Computed in the models' own precision (`model.double()` for float64), in evaluation mode, with vectors in float64.
    Memory: the graph of one batch's gradient, and max(2 * top + 1, 20, density_steps) vectors of one float64 per
    parameter: 18 GB for all parameters of BERT-base, so select some with `parameters`.

    Args:
        models: by name; they are instrumented and otherwise unchanged.
        batches, loss, teacher, average: see `objective`.
        parameters: patterns of names, see `select_parameters`.
        top: eigenvalues per batch, those of largest magnitude.
        trace_samples: Hutchinson estimates per batch, at least 2; 0 for no trace.
        density_steps: Lanczos steps per batch, from one random vector; 0 for no density.
        seed: of the random vectors.

    Raises:
        TrituneError: a name, a pattern or a number cannot be used, the teacher is missing, or a loss is not finite.
    """
    check_loss(loss, teacher, average)
    if not batches:
        raise TrituneError("there is no batch to measure the curvature on")
    if trace_samples < 0 or trace_samples == 1:
        raise TrituneError(f"{trace_samples} trace samples: use 2 or more for a standard error, or 0 for no trace")
    if density_steps < 0:
        raise TrituneError(f"{density_steps} Lanczos steps: use 1 or more, or 0 for no density")
    measured = {}
    with tqdm(total=len(models) * len(batches), unit="batch", leave=False, delay=3) as bar:
        for name, model in models.items():
            chosen = list(select_parameters(instrument(model), parameters).values())
            runs, say = [], _speaker(bar, name)
            with evaluation_mode(model), differentiated(model, chosen), weights_held():
                for number, batch in enumerate(batches):
                    evaluate = objective(loss, batch, teacher, average)
                    try:
                        say("gradient")
                        hessian = Hessian(evaluate(model), chosen)
                        runs.append(_measure(hessian, top, trace_samples, density_steps, (seed, number), say))
                    except TrituneError as error:
                        raise TrituneError(f"{name}, batch {number + 1}: {error}") from None
                    bar.update()
            measured[name] = _summary(runs, chosen, is_quantized(model))
    return Curvature(loss, average, list(parameters), [row_count(batch) for batch in batches], seed, measured)


@dataclass(frozen=True)
class _Run:
    """What was measured on one batch; fields as in `ModelCurvature`."""

    loss: float
    eigenvalues: np.ndarray
    ends: tuple[float, float]
    traces: np.ndarray
    quadrature: tuple[np.ndarray, np.ndarray] | None
    products: int


def _measure(
    hessian: Hessian, top: int, samples: int, steps: int, seed: tuple[int, int], say: Callable[[str], None]
) -> _Run:
    """Everything about the Hessian of one batch; `say` is told each stage."""
    say("eigenvalues")
    values = top_eigenvalues(hessian, top, (*seed, 0))
    ends = both_ends(hessian, values, (*seed, 1))
    say("trace")
    traces = hutchinson(hessian, samples, (*seed, 2))
    quadrature = None
    if steps:
        say("density")
        quadrature = lanczos(hessian, rademacher(hessian.shape[0], np.random.default_rng((*seed, 3))), steps)
    return _Run(hessian.loss, values, ends, traces, quadrature, hessian.products)


def _speaker(bar: tqdm, name: str) -> Callable[[str], None]:
    """A function that shows the current stage on the bar, once the bar is visible."""
    return lambda stage: bar.set_description(f"{name}: {stage}", refresh=bar.format_dict["elapsed"] > bar.delay)


def _summary(runs: list[_Run], parameters: list[nn.Parameter], surrogate: bool) -> ModelCurvature:
    traces = np.stack([run.traces for run in runs])
    batches, samples = traces.shape
    quadratures = [run.quadrature for run in runs if run.quadrature is not None]
    return ModelCurvature(
        surrogate=surrogate,
        parameters=sum(parameter.numel() for parameter in parameters),
        losses=np.array([run.loss for run in runs]),
        eigenvalues=np.stack([run.eigenvalues for run in runs]),
        smallest=np.array([run.ends[0] for run in runs]),
        largest=np.array([run.ends[1] for run in runs]),
        traces=traces,
        trace=float(traces.mean()) if samples else None,
        # The batches are given, so only the spread within each of them counts.
        trace_standard_error=float(np.sqrt((traces.var(1, ddof=1) / samples).sum()) / batches) if samples else None,
        density=spectral_density(quadratures) if quadratures else None,
        products=sum(run.products for run in runs),
    )
