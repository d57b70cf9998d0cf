"""The loss on a plane through the weights: along random directions, or through given checkpoints.

Random directions are filter-normalised (Li et al. 2018, arXiv 1712.09913): a scaled network is the same network, so
each row of a direction gets the length of the weight row that it moves; biases and norms stay where they are. For QAT
students the latent weights move, and the loss is that of the quantized model at each point: EACL 2023, Fig. 2a.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..compute.held import weights_held
from ..distil.choices import TASK_LOSS, check_loss
from ..errors import TrituneError
from ..modeling.instrument import instrument
from ..modeling.modes import evaluation_mode
from ..progress import Say, stage
from .kept import Kept, fingerprint, identity
from .objective import Objective, objective
from .pace import Budget, expected_end, seconds_of, silent
from .parameters import Parameters, restored, select_parameters
from .subjects import Batch, row_count

# How far a plane reaches beyond the checkpoints that it goes through, as a share of their spread.
_MARGIN = 0.25
_SAME_LINE = 1e-6


@dataclass(frozen=True)
class Checkpoint:
    """The position of a checkpoint.

    Attributes:
        name: of the checkpoint.
        x, y: of its projection onto the plane.
        distance: from the plane, in the same unit; 0 for those that span it.
        loss: at the checkpoint itself.
    """

    name: str
    x: float
    y: float
    distance: float
    loss: float


@dataclass(frozen=True)
class Landscape:
    """The losses of one or more models on a grid.

    Attributes:
        loss: a name of `distil.losses.LOSSES`.
        average: `padded` or `valid`, what that loss averages over.
        patterns: of the parameters that move; empty for all.
        rows: of data the loss is the mean over.
        directions: "random" or "checkpoints".
        seed: of random directions.
        x, y: (columns,) and (lines,), the coordinates; (0, 0) is the model itself. Along random directions 1 is as far
            as the weights are from zero; through checkpoints it is the distance from the model to the first of them.
        losses: model name to (lines, columns), the loss at y, x; NaN or infinite where it is.
        centre: model name to its loss as it is.
        checkpoints: those given, the model itself first; empty along random directions.
    """

    loss: str
    average: str
    patterns: list[str]
    rows: int
    directions: str
    seed: int
    x: np.ndarray
    y: np.ndarray
    losses: dict[str, np.ndarray]
    centre: dict[str, float]
    checkpoints: list[Checkpoint]


def landscape(
    models: Mapping[str, PreTrainedModel],
    batches: Sequence[Batch],
    *,
    loss: str = TASK_LOSS,
    teacher: PreTrainedModel | None = None,
    average: str = "padded",
    parameters: Sequence[str] = (),
    points: int = 21,
    extent: float = 1.0,
    seed: int = 0,
    checkpoints: Mapping[str, Parameters] | None = None,
    minutes: float | None = None,
    parts: Kept | None = None,
    say: Say = silent,
) -> Landscape:
    """The loss on a grid around each model, in evaluation mode; its weights are restored bit for bit.

    Args:
        models: by name. Parameters of the same name and shape get the same random numbers in all of them.
        batches, loss, teacher, average: see `objective`.
        parameters: patterns of the names of those that move, see `select_parameters`.
        points: of the grid along each axis; odd, so that the model is one of them.
        extent: random directions are followed from -extent to +extent.
        seed: of the random directions.
        checkpoints: name to parameters by name (`dict(model.named_parameters())`), at least two. The plane goes through
            the one model of `models` and the first two of them; further ones are projected onto it. Grid lines are
            added so that the three are grid points.
        minutes: the grid has as many of its `points` as the time of a first one allows, at least 3. None for no bound.
        parts: the grid is kept here, line by line, and what is here already is not computed again.
        say: is told when the analysis will end, and whether points were left out.

    Raises:
        TrituneError: a name, a pattern or a number cannot be used, a checkpoint does not fit the model, three lie on
            one line, or the loss of a model is not finite.
    """
    check_loss(loss, teacher, average)
    _check_grid(models, batches, points, extent)
    if checkpoints and len(models) > 1:
        raise TrituneError(f"the plane goes through one model and its checkpoints, and there are {len(models)} models")
    moved = {name: select_parameters(model, parameters) for name, model in models.items()}
    counts = [row_count(batch) for batch in batches]
    targets = [objective(loss, batch, teacher, average) for batch in batches]
    surfaces = [_Surface(name, instrument(model), moved[name], targets, counts) for name, model in models.items()]
    compared = teacher if teacher is not None and loss != TASK_LOSS else None
    mark = fingerprint(loss, average, [identity(model) for model in (*models.values(), compared)], list(batches))
    mark = fingerprint(mark, list(parameters), seed, extent, dict(checkpoints or {}))
    budget, parts = Budget(minutes), parts or Kept()
    states = _states(surfaces[0].name, surfaces[0].moved, checkpoints) if checkpoints else {}
    through, places = plane(states) if states else (None, {})
    centre = {surface.name: surface.centre() for surface in surfaces}
    plan = fingerprint(mark, points, minutes)
    points = parts.measured(plan, lambda: _affordable(surfaces, points, budget, say))
    x = y = np.linspace(-extent, extent, points)
    grids, marks = {}, []
    for surface in surfaces:
        with surface.still() as evaluate:
            directions = through or (
                random_direction(surface.moved, (seed, 0)),
                random_direction(surface.moved, (seed, 1)),
            )
            if states:
                losses = checkpoint_losses(surface.moved, states, evaluate)
                marks = [Checkpoint(key, *places[key], losses[key]) for key in states]
                x, y = (_axis([mark[axis] for mark in places.values()], points) for axis in (0, 1))
            keep = partial(_kept_line, parts, [mark, surface.name, x.tolist()])
            grids[surface.name] = loss_grid(surface.moved, directions, x, y, evaluate, surface.name, keep)
    kind = "checkpoints" if checkpoints else "random"
    return Landscape(loss, average, list(parameters), sum(counts), kind, seed, x, y, grids, centre, marks)


@dataclass(frozen=True)
class _Surface:
    """A model whose loss is a function of the parameters that move."""

    name: str
    model: PreTrainedModel
    moved: Parameters
    targets: list[Objective]
    counts: list[int]

    @contextmanager
    def still(self) -> Iterator[Callable[[], float]]:
        """Within the context the model is in evaluation mode; the loss with its parameters as they are."""
        with evaluation_mode(self.model), weights_held(), torch.no_grad():
            yield partial(_mean_loss, self.model, self.targets, self.counts)

    def centre(self) -> float:
        """The loss of the model as it is, which must be finite."""
        with self.still() as evaluate:
            loss = evaluate()
        if not np.isfinite(loss):
            raise TrituneError(f"{self.name}: the loss is {loss}; there is no landscape around it")
        return loss

    def seconds_per_point(self) -> float:
        """Of a point at the model itself, reached as any other is."""
        here, nowhere = (self.moved, self.moved), np.zeros(1)
        with self.still() as evaluate:
            return seconds_of(lambda: loss_grid(self.moved, here, nowhere, nowhere, evaluate))


def _affordable(surfaces: Sequence[_Surface], points: int, budget: Budget, say: Say) -> int:
    """How many points along each axis, at most `points`, fit into the budget; says when they will be done."""
    seconds = sum(surface.seconds_per_point() for surface in surfaces)
    fitting = next((n for n in range(points, 3, -2) if n * n * seconds <= budget.left), 3)
    if fitting < points:
        say(f"{fitting} points along each axis fit into the time, instead of {points}")
    say(
        f"landscape of {len(surfaces)} model(s) on {fitting} x {fitting} points of {seconds / len(surfaces):.1f} s: "
        f"{expected_end(fitting * fitting * seconds)}"
    )
    return fitting


def _kept_line(parts: Kept, mark: list[Any], y: float, measure: Callable[[], list[float]]) -> list[float]:
    """A line of the grid, kept; `mark` is everything that decides it but its height `y`."""
    return parts.measured(fingerprint(*mark, y), measure)


def random_direction(parameters: Parameters, seed: Sequence[int]) -> dict[str, torch.Tensor]:
    """A filter-normalised random direction (Li et al. 2018, section 4): d_i * ||w_i|| / ||d_i|| for every row i.

    A row belongs to one index of the first dimension: the weights of one output channel, or one embedding.

    Args:
        parameters: by name; those of fewer than two dimensions get a direction of zeros.
        seed: determines a parameter's random numbers together with its name, independently of other parameters.

    Returns:
        Tensors shaped like the parameters.
    """
    directions = {}
    for name, parameter in parameters.items():
        weight = parameter.detach()
        if weight.ndim < 2:
            directions[name] = torch.zeros_like(weight)
            continue
        generator = np.random.default_rng((*seed, zlib.crc32(name.encode())))
        noise = torch.from_numpy(generator.standard_normal(weight.shape)).flatten(1)
        lengths = weight.double().flatten(1).norm(dim=1, keepdim=True).cpu() / noise.norm(dim=1, keepdim=True)
        directions[name] = (noise * lengths).view(weight.shape).to(weight)
    return directions


def plane(
    states: Mapping[str, Parameters],
) -> tuple[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]], dict[str, tuple[float, float, float]]]:
    """The plane through the first three of some points in weight space.

    The first point is the origin and the second is (1, 0); y is orthogonal to x, in the same unit.

    Args:
        states: name to parameters by name.

    Returns:
        Both directions, by parameter; and name to (x, y, distance from the plane).

    Raises:
        TrituneError: the first three are on one line.
    """
    names = list(states)
    origin = states[names[0]]
    differences = {key: _flat(states[key]) - _flat(origin) for key in names}
    first, second = differences[names[1]], differences[names[2]]
    unit = first.norm()
    across = second - first * (second @ first / unit**2)
    if not unit > 0 or not across.norm() > _SAME_LINE * second.norm():
        raise TrituneError(f"{names[0]}, {names[1]} and {names[2]} lie on one line: they span no plane; give others")
    across *= unit / across.norm()
    places = {}
    for key, difference in differences.items():
        x, y = (float(difference @ axis / unit**2) for axis in (first, across))
        # Those that span the plane are in it, up to rounding.
        beside = 0.0 if key in names[:3] else float((difference - x * first - y * across).norm() / unit)
        places[key] = (x, y, beside)
    sizes = [tensor.numel() for tensor in origin.values()]
    along_x, along_y = (
        {name: part.view_as(w).to(w) for (name, w), part in zip(origin.items(), axis.split(sizes), strict=True)}
        for axis in (first, across)
    )
    return (along_x, along_y), places


def loss_grid(
    parameters: Parameters,
    directions: tuple[Parameters, Parameters],
    x: np.ndarray,
    y: np.ndarray,
    evaluate: Callable[[], float],
    name: str = "",
    keep: Callable[[float, Callable[[], list[float]]], list[float]] = lambda _, measure: measure(),
) -> np.ndarray:
    """The loss at parameters + x * directions[0] + y * directions[1], for all x and y.

    Args:
        parameters: changed in place, and restored bit for bit, even after an error.
        directions: tensors shaped like the parameters, by name.
        x, y: (columns,) and (lines,).
        evaluate: the loss with the parameters as they are.
        name: of the model, with which it tells how far it is; "" tells nothing.
        keep: is called with the y of each line and a function that computes its losses, and returns them.

    Returns:
        (lines, columns)
    """
    points = stage(f"landscape of {name}", len(y) * len(x), "points", delay=3 if name else math.inf)
    with points as shown, restored(parameters) as origin, torch.no_grad():

        def line_at(height: float) -> list[float]:
            """The losses along x at one y."""
            losses, up = [], {key: directions[1][key] * height for key in parameters}
            for across in x:
                for key, parameter in parameters.items():
                    step = torch.add(up[key], directions[0][key], alpha=float(across))
                    torch.add(origin[key], step, out=parameter)
                losses.append(evaluate())
                shown.advance()
            return losses

        lines = [keep(float(height), partial(line_at, float(height))) for height in y]
    return np.array(lines)


def checkpoint_losses(
    parameters: Parameters, states: Mapping[str, Parameters], evaluate: Callable[[], float]
) -> dict[str, float]:
    """The loss with each of `states` instead of the parameters, which are restored afterwards."""
    losses = {}
    with restored(parameters), torch.no_grad():
        for name, state in states.items():
            for key, parameter in parameters.items():
                parameter.copy_(state[key])
            losses[name] = evaluate()
    return losses


def _mean_loss(model: PreTrainedModel, targets: list[Objective], counts: list[int]) -> float:
    """Over all rows of the batches, each of which has a target."""
    return sum(count / sum(counts) * target(model).item() for target, count in zip(targets, counts, strict=True))


def _check_grid(models: Mapping[str, PreTrainedModel], batches: Sequence[Batch], points: int, extent: float) -> None:
    if not models or not batches:
        raise TrituneError("a landscape needs a model and a batch")
    if points < 3 or points % 2 == 0:
        raise TrituneError(f"{points} points: use an odd number of at least 3, so that the model is one of them")
    if not 0 < extent < float("inf"):
        raise TrituneError(f"a range of {extent}: it must be more than 0")


def _states(name: str, moved: Parameters, checkpoints: Mapping[str, Parameters]) -> dict[str, Parameters]:
    """The moving parameters of the model and of each checkpoint, checked to fit."""
    if len(checkpoints) < 2:
        raise TrituneError(f"{next(iter(checkpoints))}: one checkpoint and the model span no plane; give two or more")
    states: dict[str, Parameters] = {name: {key: parameter.detach().clone() for key, parameter in moved.items()}}
    for title, state in checkpoints.items():
        if title in states:
            raise TrituneError(f"{title}: the model itself cannot be a checkpoint")
        for key, parameter in moved.items():
            if key not in state or state[key].shape != parameter.shape:
                raise TrituneError(f"{title}: has no {key} of shape {tuple(parameter.shape)}, which {name} has")
        states[title] = {key: state[key].detach().to(parameter) for key, parameter in moved.items()}
    return states


def _axis(marks: list[float], points: int) -> np.ndarray:
    """An even axis over the marks with a margin, plus the first three marks."""
    low, high = min(marks), max(marks)
    margin = _MARGIN * (high - low)
    even = np.linspace(low - margin, high + margin, points)
    spacing = even[1] - even[0]
    # A line of the even grid that all but coincides with an added one would only cost time.
    kept = [value for value in even if min(abs(value - mark) for mark in marks[:3]) > 1e-3 * spacing]
    return np.unique([*kept, *marks[:3]])


def _flat(state: Parameters) -> torch.Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in state.values()])
