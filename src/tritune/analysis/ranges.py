"""The ranges that an 8-bit code must cover, layer by layer and token by token (EMNLP 2022, Fig. 5)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from ..errors import TrituneError
from .subjects import Batch, row_count
from .traces import real_tokens, traced

FIELDS = {
    "block_output": "attention_block_output",
    "context": "context",
    "projection": "attention_projection",
}


@dataclass(frozen=True)
class Ranges:
    """The smallest and largest entries of a tensor at every position.

    Attributes:
        models: names.
        tensor: `block_output`, `context` or `projection`.
        rows: number of sequences.
        tokens: at the positions, if there was a single row; else None.
        minimum, maximum: (models, layers, positions), over all rows that reach a position.
    """

    models: list[str]
    tensor: str
    rows: int
    tokens: list[str] | None
    minimum: np.ndarray
    maximum: np.ndarray


def ranges(
    models: Mapping[str, PreTrainedModel],
    batches: Iterable[Batch],
    tensor: str = "block_output",
    tokens: list[str] | None = None,
) -> Ranges:
    """Minimum and maximum of a tensor by layer and position, padding left out.

    Args:
        models: name to instrumented model of one depth.
        batches: keyword arguments of the models.
        tensor: `block_output`, `context` (all heads together) or `projection`.
        tokens: names of the positions, for the figure.

    Raises:
        TrituneError: an unknown tensor, or models of different depth.
    """
    if tensor not in FIELDS:
        raise TrituneError(f"there is no tensor {tensor!r} to look at; known are {', '.join(FIELDS)}")
    extremes: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    rows = 0
    for batch in batches:
        for name, model in models.items():
            found = _extremes(model, batch, FIELDS[tensor])
            extremes[name] = found if name not in extremes else _merged(extremes[name], found)
        rows += row_count(batch)
    depths = {name: len(low) for name, (low, _) in extremes.items()}
    if len(set(depths.values())) > 1:
        raise TrituneError(f"the models have different numbers of layers: {depths}")
    low, high = (torch.stack([extremes[name][side] for name in models]) for side in (0, 1))
    reached = low.isfinite().any(1).any(0)  # padding of whole columns is nobody's position
    both = (part[..., reached].masked_fill(part[..., reached].isinf(), torch.nan).numpy() for part in (low, high))
    return Ranges(list(models), tensor, rows, tokens, *both)


def _extremes(model: PreTrainedModel, batch: Batch, field: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimum and maximum, both (layers, positions); +inf and -inf where no row has a token."""
    tensors = torch.stack(traced(model, batch, field)).double()
    low, high = tensors.amin(-1), tensors.amax(-1)
    if tensors.ndim == 5:
        low, high = low.amin(2), high.amax(2)
    real = real_tokens(batch)
    if real is not None:
        low, high = low.masked_fill(~real, torch.inf), high.masked_fill(~real, -torch.inf)
    return low.amin(1).cpu(), high.amax(1).cpu()


def _merged(one: tuple, other: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """The extremes of two batches, which may differ in length."""
    longest = max(one[0].shape[1], other[0].shape[1])
    padded = [
        [torch.nn.functional.pad(part, (0, longest - part.shape[1]), value=value) for part in parts]
        for parts, value in zip(zip(one, other, strict=True), (torch.inf, -torch.inf), strict=True)
    ]
    return torch.minimum(*padded[0]), torch.maximum(*padded[1])


def plot_ranges(result: Ranges) -> Figure:
    """A panel per layer: the band between minimum and maximum against the position, a colour per model."""
    layers = result.minimum.shape[1]
    columns = min(3, layers)
    lines = -(-layers // columns)
    figure = Figure(figsize=(4.2 * columns, 2.4 * lines + 0.8), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True)
    positions = np.arange(result.minimum.shape[2])
    for layer, axes in enumerate(panels.flat[:layers]):
        for index, name in enumerate(result.models):
            low, high = result.minimum[index, layer], result.maximum[index, layer]
            axes.fill_between(positions, low, high, alpha=0.1, color=f"C{index}", lw=0)
            axes.plot(positions, low, color=f"C{index}", lw=1)
            axes.plot(positions, high, color=f"C{index}", lw=1, label=name)
        axes.set_title(f"layer {layer}", fontsize="medium")
        if result.tokens is not None:
            axes.set_xticks(positions, result.tokens, rotation=90, fontsize=7)
    for axes in panels.flat[layers:]:
        axes.set_axis_off()
    panels.flat[0].legend(fontsize="small", loc="center")
    figure.suptitle(f"Range of the {result.tensor.replace('_', ' ')}, {result.rows} sequence{'s' * (result.rows > 1)}")
    return figure


def summarize_ranges(result: Ranges) -> list[list[str]]:
    """The extremes of every layer as rows of a table, the header first."""
    low, high = np.nanmin(result.minimum, -1), np.nanmax(result.maximum, -1)
    rows = [
        [str(layer), *(f"{low[model, layer]:.2f} to {high[model, layer]:.2f}" for model in range(len(result.models)))]
        for layer in range(low.shape[1])
    ]
    return [["layer", *result.models], *rows]
