"""How curved a loss is: Hessian eigenvalues batch by batch, the trace, and the whole spectrum as a density.

The figures are those of EACL 2023 (Fig. 5) and EMNLP 2022 (Fig. 3): the top eigenvalues of the Hessian of each of many
batches, as one density with its positive and its negative tail. A quantized student is piecewise constant in its
weights, so its own second derivative is zero almost everywhere; what is measured is the Hessian of its straight-through
surrogate, the function whose gradient training follows (see `hessian.Hessian`).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from ..checkpoints.load import is_quantized
from ..compute.held import weights_held
from ..distil.choices import TASK_LOSS, check_loss
from ..errors import TrituneError
from ..modeling.instrument import instrument
from ..modeling.modes import evaluation_mode
from ..progress import Say, Stage, stage
from .hessian import Hessian, both_ends, check_count, hutchinson, rademacher, top_eigenvalues
from .kept import Kept, fingerprint, identity
from .lanczos import SpectralDensity, lanczos, spectral_density
from .objective import objective
from .pace import Budget, expected_end, seconds_of, silent
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
        tolerance: of the eigenvalues, see `hessian.top_eigenvalues`.
        models: by name.
    """

    loss: str
    average: str
    patterns: list[str]
    rows: list[int]
    seed: int
    tolerance: float
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
    tolerance: float = 1e-2,
    seed: int = 0,
    minutes: float | None = None,
    parts: Kept | None = None,
    say: Say = silent,
) -> Curvature:
    """The Hessian of a loss with respect to the parameters: its eigenvalues per batch, trace and spectral density.

    Computed in the models' own precision (`model.double()` for float64), in evaluation mode. Rows of the parameters
    that a batch does not use, such as those of its missing words, are left out of the products: they are zero.
    Memory: the graph of one batch's gradient, and max(2 * top + 1, 20, density_steps) vectors of one number per
    parameter in use: 9 GB for all parameters of BERT-base, so select some with `parameters`.

    Args:
        models: by name; they are instrumented and otherwise unchanged.
        batches, loss, teacher, average: see `objective`.
        parameters: patterns of names, see `select_parameters`.
        top: eigenvalues per batch, those of largest magnitude.
        trace_samples: Hutchinson estimates per batch, at least 2; 0 for no trace.
        density_steps: Lanczos steps per batch, from one random vector; 0 for no density.
        tolerance: of the eigenvalues, see `top_eigenvalues`.
        seed: of the random vectors.
        minutes: no further batch is begun that would not end within them; the first one always is. None for no bound.
        parts: what is measured is kept here, batch by batch, and what is here already is not measured again.
        say: is told when the analysis will end, and whether batches were left out.

    Raises:
        TrituneError: a name, a pattern or a number cannot be used, the teacher is missing, or a loss is not finite.
    """
    check_loss(loss, teacher, average)
    _check_numbers(batches, trace_samples, density_steps, tolerance)
    settings = _Settings(loss, average, tuple(parameters), top, trace_samples, density_steps, tolerance, seed)
    subjects = [_Subject(name, instrument(model), teacher, settings) for name, model in models.items()]
    budget, parts = Budget(minutes), parts or Kept()
    runs: dict[str, list[_Run]] = {subject.name: [] for subject in subjects}
    with stage("curvature", len(models) * len(batches), "batches", delay=3) as shown:
        pace = _announce(subjects, batches, parts, budget, say)
        for number, batch in enumerate(batches):
            todo = [subject for subject in subjects if subject.part(number, batch) not in parts]
            if number and todo and pace * _size(batch) > budget.left:
                say(f"{number} of {len(batches)} batches fit into {minutes:g} minutes; the others are left out")
                break
            begun = time.monotonic()
            for subject in subjects:
                measure = partial(subject.measure, number, batch, _speaker(shown, subject.name))
                runs[subject.name].append(_Run.of(parts.measured(subject.part(number, batch), measure)))
                shown.advance()
            if todo == subjects:
                pace = (time.monotonic() - begun) / _size(batch)
    rows = [row_count(batch) for batch, _ in zip(batches, runs[subjects[0].name], strict=False)]
    measured = {subject.name: subject.summary(runs[subject.name]) for subject in subjects}
    return Curvature(loss, average, list(parameters), rows, seed, tolerance, measured)


@dataclass(frozen=True)
class _Settings:
    """What decides the figures of a model and a batch; fields as in `curvature`."""

    loss: str
    average: str
    parameters: tuple[str, ...]
    top: int
    trace_samples: int
    density_steps: int
    tolerance: float
    seed: int

    @property
    def products(self) -> int:
        """About how many Hessian-vector products a batch takes: Lanczos may restart, or be needed for the other end."""
        return 3 + 3 * max(2 * self.top + 1, 20) // 2 + self.trace_samples + self.density_steps


@dataclass(frozen=True)
class _Run:
    """What was measured on one batch; fields as in `ModelCurvature`."""

    loss: float
    eigenvalues: np.ndarray
    ends: tuple[float, float]
    traces: np.ndarray
    quadrature: tuple[np.ndarray, np.ndarray] | None
    products: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "_Run":
        """From what JSON holds of it."""
        quadrature = values["quadrature"] and tuple(map(np.array, values["quadrature"]))
        arrays = {name: np.array(values[name], dtype=np.float64) for name in ("eigenvalues", "traces")}
        return cls(**{**values, **arrays, "ends": tuple(values["ends"]), "quadrature": quadrature})


class _Subject:
    """A model with the settings that it is measured with."""

    def __init__(self, name: str, model: PreTrainedModel, teacher: PreTrainedModel | None, settings: _Settings):
        self.name, self.model, self.teacher, self.settings = name, model, teacher, settings
        self.parameters = list(select_parameters(model, settings.parameters).values())
        check_count(settings.top, sum(parameter.numel() for parameter in self.parameters))
        compared = teacher if teacher is not None and settings.loss != TASK_LOSS else None
        self.mark = fingerprint(asdict(settings), identity(model), identity(compared))

    def part(self, number: int, batch: Batch) -> str:
        """The fingerprint of what `measure` returns."""
        return fingerprint(self.mark, number, batch)

    @contextmanager
    def hessian(self, number: int, batch: Batch) -> Iterator[Hessian]:
        """The Hessian on the batch of that number; the model is as before afterwards."""
        evaluate = objective(self.settings.loss, batch, self.teacher, self.settings.average)
        with evaluation_mode(self.model), differentiated(self.model, self.parameters), weights_held():
            try:
                whole = Hessian(evaluate(self.model), self.parameters)
                yield whole.without_unused_rows((self.settings.seed, number, 4))
            except TrituneError as error:
                raise TrituneError(f"{self.name}, batch {number + 1}: {error}") from None

    def trial(self, batch: Batch) -> tuple[float, float]:
        """Seconds that the gradient on a batch takes, and one product."""
        begun = time.monotonic()
        with self.hessian(0, batch) as hessian:
            gradient = time.monotonic() - begun
            product = seconds_of(lambda: hessian @ np.ones(hessian.shape[0], dtype=hessian.dtype))
        return gradient, product

    def measure(self, number: int, batch: Batch, tell: Callable[[str], None]) -> dict[str, Any]:
        """Everything about the Hessian of one batch, as `_Run.of` takes it; `tell` is told what is under way."""
        tell("gradient")
        settings = self.settings
        seed = (settings.seed, number)
        with self.hessian(number, batch) as hessian:
            tell("eigenvalues")
            values, ends = _eigenvalues(hessian, settings.top, seed, settings.tolerance)
            tell("trace")
            traces = hutchinson(hessian, settings.trace_samples, (*seed, 2), hessian.used)
            quadrature = None
            if settings.density_steps:
                tell("density")
                signs = rademacher(len(hessian.used), np.random.default_rng((*seed, 3)))[hessian.used]
                nodes, weights = lanczos(hessian, signs, settings.density_steps)
                quadrature = _with_zeros(nodes, weights, hessian.used)
        return {
            "loss": hessian.loss,
            "eigenvalues": values.tolist(),
            "ends": ends,
            "traces": traces.tolist(),
            "quadrature": quadrature,
            "products": hessian.products,
        }

    def summary(self, runs: list[_Run]) -> ModelCurvature:
        """The model's curvature from that of each batch."""
        return _summary(runs, self.parameters, is_quantized(self.model))


def _eigenvalues(
    hessian: Hessian, top: int, seed: tuple[int, int], tolerance: float
) -> tuple[np.ndarray, tuple[float, float]]:
    """The `top` eigenvalues and both ends of the spectrum; rows not in use have the eigenvalue zero."""
    if not (size := hessian.shape[0]):
        return np.zeros(top), (0.0, 0.0)
    values = top_eigenvalues(hessian, min(top, size), (*seed, 0), tolerance)
    low, high = both_ends(hessian, values, (*seed, 1), tolerance)
    if hessian.used.all():
        return values, (low, high)
    return np.pad(values, (0, top - len(values))), (min(low, 0.0), max(high, 0.0))


def _with_zeros(nodes: np.ndarray, weights: np.ndarray, used: np.ndarray) -> tuple[list[float], list[float]]:
    """The quadrature of all entries, of which those not in use have the eigenvalue zero."""
    if used.all():
        return nodes.tolist(), weights.tolist()
    share = float(used.mean())
    return [*nodes.tolist(), 0.0], [*(share * weights).tolist(), 1 - share]


def _announce(subjects: Sequence[_Subject], batches: Sequence[Batch], parts: Kept, budget: Budget, say: Say) -> float:
    """Say when the analysis will end, from a first product of each model; returns seconds per number of a batch."""
    todo = [batch for number, batch in enumerate(batches) if any(s.part(number, batch) not in parts for s in subjects)]
    if len(todo) < len(batches):
        say(f"{len(batches) - len(todo)} of {len(batches)} batches were measured before and are kept")
    if not todo:
        return 0.0
    products = subjects[0].settings.products
    trials = [subject.trial(todo[0]) for subject in subjects]
    seconds = sum(gradient + products * product for gradient, product in trials)
    pace = seconds / _size(todo[0])
    total = min(pace * sum(map(_size, todo)), max(budget.left, seconds))
    say(
        f"curvature of {len(subjects)} model(s) on {len(todo)} batch(es), about {products} products each of "
        f"{sum(product for _, product in trials) / len(trials):.1f} s: {expected_end(total)}"
    )
    return pace


def _size(batch: Batch) -> int:
    """How large a batch is, in numbers: the time that it takes grows with it."""
    return next(iter(batch.values())).numel()


def _check_numbers(batches: Sequence[Batch], trace_samples: int, density_steps: int, tolerance: float) -> None:
    if not batches:
        raise TrituneError("there is no batch to measure the curvature on")
    if trace_samples < 0 or trace_samples == 1:
        raise TrituneError(f"{trace_samples} trace samples: use 2 or more for a standard error, or 0 for no trace")
    if density_steps < 0:
        raise TrituneError(f"{density_steps} Lanczos steps: use 1 or more, or 0 for no density")
    if not 0 < tolerance < 1:
        raise TrituneError(f"a tolerance of {tolerance}: it must be more than 0 and less than 1, such as 0.01")


def _speaker(shown: Stage, name: str) -> Callable[[str], None]:
    """A function that tells what is being measured."""
    return lambda what: shown.note(now=f"{name}, {what}")


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
