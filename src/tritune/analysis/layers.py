"""How far a student's hidden states are from the teacher's, layer by layer (EACL 2023, Fig. 2b and 4b)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from .subjects import Batch
from .traces import check_same_shapes, real_tokens, traced


@dataclass(frozen=True)
class LayerErrors:
    """Mean squared differences of hidden states.

    Attributes:
        students: names.
        tokens: number of real tokens averaged over.
        mse: (students, layers + 1), the embeddings' output first.
    """

    students: list[str]
    tokens: int
    mse: np.ndarray


def layers(teacher: PreTrainedModel, students: Mapping[str, PreTrainedModel], batches: Iterable[Batch]) -> LayerErrors:
    """Mean squared difference of every hidden state from the teacher's, over all real tokens and the width.

    Args:
        teacher: instrumented.
        students: name to instrumented model of the teacher's depth and width.
        batches: keyword arguments of the models.

    Raises:
        TrituneError: a student has another depth or width than the teacher.
    """
    sums: dict[str, torch.Tensor] = {}
    tokens = 0
    for batch in batches:
        states = {
            name: traced(model, batch, "hidden_states") for name, model in {"teacher": teacher, **students}.items()
        }
        check_same_shapes(states)
        expected = _of_real_tokens(states["teacher"], batch)
        tokens += expected.shape[1]
        for name in students:
            errors = (_of_real_tokens(states[name], batch) - expected).square().mean(-1).sum(1)
            sums[name] = sums.get(name, 0) + errors
    mse = np.stack([(sums[name] / tokens).cpu().numpy() for name in students])
    return LayerErrors(list(students), tokens, mse)


def _of_real_tokens(states: list[torch.Tensor], batch: Batch) -> torch.Tensor:
    """Hidden states, each (batch, tokens, width), to (layers + 1, real tokens of the batch, width) in float64."""
    real = real_tokens(batch)
    stacked = torch.stack(states).double()
    return stacked.flatten(1, 2) if real is None else stacked[:, real]


def plot_layers(result: LayerErrors) -> Figure:
    """The error against the layer, a line per student."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, errors in zip(result.students, result.mse, strict=True):
        axes.plot(errors, marker="o", label=name)
    count = result.mse.shape[1]
    axes.set_xticks(range(count), ["embed-\ndings", *map(str, range(count - 1))])
    axes.set(
        xlabel="layer", ylabel="mean squared difference", yscale="log", title="Hidden states against the teacher's"
    )
    axes.legend(fontsize="small")
    return figure


def summarize_layers(result: LayerErrors) -> list[list[str]]:
    """The errors as rows of a table, the header first."""
    names = ["embeddings", *map(str, range(result.mse.shape[1] - 1))]
    rows = [[name, *(f"{value:.4g}" for value in result.mse[:, i])] for i, name in enumerate(names)]
    return [["layer", *result.students], *rows]
