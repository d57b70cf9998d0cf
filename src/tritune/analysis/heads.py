"""The attention maps of chosen heads for one sentence: teacher, students, and their differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from ..errors import TrituneError
from .maps import map_kl
from .plots import beside_differences
from .subjects import Batch
from .traces import check_same_shapes, sequences, traced


@dataclass(frozen=True)
class Heads:
    """Attention maps of one sentence.

    Attributes:
        models: names, the teacher's first.
        tokens: of the sentence.
        heads: the chosen (layer, head) pairs, counted from 0.
        maps: (models, chosen heads, query, key).
    """

    models: list[str]
    tokens: list[str]
    heads: list[tuple[int, int]]
    maps: np.ndarray


def heads(
    models: Mapping[str, PreTrainedModel],
    batch: Batch,
    tokens: Sequence[str],
    chosen: Sequence[tuple[int, int]] | int = 4,
) -> Heads:
    """The maps of chosen heads for the first row of a batch, without padding.

    Args:
        models: name to instrumented model of one shape, the teacher first.
        batch: keyword arguments of the models.
        tokens: names of the real tokens of the first row.
        chosen: (layer, head) pairs, counted from 0; or the number of heads to take, those in which the second model
            is farthest from the first (by KL).

    Raises:
        TrituneError: a layer or head does not exist, or the models have different shapes.
    """
    traces = {name: traced(model, batch, "attention_probs") for name, model in models.items()}
    check_same_shapes(traces)
    maps = torch.stack([torch.stack(next(sequences(batch, *layers))) for layers in traces.values()])
    if isinstance(chosen, int):
        chosen = _farthest(maps, chosen)
    for layer, head in chosen:
        if layer not in range(maps.shape[1]) or head not in range(maps.shape[2]):
            raise TrituneError(
                f"there is no head {layer}.{head}: the models have layers 0 to {maps.shape[1] - 1} and heads 0 to "
                f"{maps.shape[2] - 1}"
            )
    picked = torch.stack([maps[:, layer, head] for layer, head in chosen], dim=1)
    return Heads(list(models), list(tokens), list(chosen), picked.double().cpu().numpy())


def _farthest(maps: torch.Tensor, count: int) -> list[tuple[int, int]]:
    """The heads with the largest KL between the first two of (models, layers, heads, query, key)."""
    student = maps[min(1, len(maps) - 1)]
    distance = torch.stack([map_kl(own, teachers) for own, teachers in zip(student, maps[0], strict=True)])
    order = distance.flatten().argsort(descending=True, stable=True)[:count].tolist()
    return sorted(divmod(index, maps.shape[2]) for index in order)


def plot_heads(result: Heads) -> Figure:
    """A row per head: every model's map, and each student's difference from the teacher."""
    columns = 2 * len(result.models) - 1
    side = min(max(2.2, 0.19 * len(result.tokens)), 5.0)
    small = min(7.0, 54 * side / len(result.tokens))  # points; three quarters of a token's own room
    figure = Figure(figsize=(side * columns + 1.5, side * len(result.heads) + 1), layout="constrained")
    grid = figure.subplots(len(result.heads), columns, squeeze=False)
    for index, (row, (layer, head)) in enumerate(zip(grid, result.heads, strict=True)):
        panels = beside_differences(result.models, result.maps[:, index], "magma")
        for column, (axes, (title, panel, colours)) in enumerate(zip(row, panels, strict=True)):
            image = axes.imshow(panel, **colours)
            ticks = range(len(result.tokens))
            axes.set_xticks(ticks, result.tokens, rotation=90, fontsize=small)
            axes.set_yticks(ticks, result.tokens if column == 0 else [""] * len(result.tokens), fontsize=small)
            if index == 0:
                axes.set_title(title, fontsize="small")
            if column in (len(result.models) - 1, columns - 1):
                figure.colorbar(image, ax=axes, shrink=0.7)
        row[0].set_ylabel(f"layer {layer}, head {head}\nquery")
    for axes in grid[-1]:
        axes.set_xlabel("key")
    return figure


def summarize_heads(result: Heads) -> list[list[str]]:
    """The distance of every student in every chosen head as rows of a table, the header first."""
    maps = torch.from_numpy(result.maps)
    distances = [map_kl(own, maps[0]) for own in maps[1:]]
    rows = [
        [f"{layer}.{head}", *(f"{distance[i]:.4g}" for distance in distances)]
        for i, (layer, head) in enumerate(result.heads)
    ]
    return [["layer.head", *(f"KL, {name}" for name in result.models[1:])], *rows]
