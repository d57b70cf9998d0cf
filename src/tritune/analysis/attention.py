"""How well students recover the teacher's attention maps (EMNLP 2022, Fig. 4)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from .maps import MEASURES, Measure, cover_length_ratio
from .subjects import Batch
from .traces import check_same_shapes, sequences, traced

TITLES = {
    "kl": "KL(teacher || student)",
    "ranking_loss": "ranking loss",
    "cover_length_ratio": "cover-length ratio",
    "cosine": "cosine",
}


@dataclass(frozen=True)
class AttentionComparison:
    """Distances of attention maps from the teacher's, averaged over sequences.

    Attributes:
        students: names.
        sequences: how many were averaged over.
        top_k: of the cover-length ratio.
        kl, ranking_loss, cover_length_ratio, cosine: (students, layers, heads); see `analysis.maps`.
    """

    students: list[str]
    sequences: int
    top_k: int
    kl: np.ndarray
    ranking_loss: np.ndarray
    cover_length_ratio: np.ndarray
    cosine: np.ndarray


def attention(
    teacher: PreTrainedModel, students: Mapping[str, PreTrainedModel], batches: Iterable[Batch], top_k: int = 5
) -> AttentionComparison:
    """Compare every head's maps with the teacher's, sequence by sequence and without padding.

    Args:
        teacher: instrumented.
        students: name to instrumented model of the teacher's shape.
        batches: keyword arguments of the models.
        top_k: of the cover-length ratio.

    Raises:
        TrituneError: a student has other layers or heads than the teacher.
    """
    measures: dict[str, Measure] = {**MEASURES, "cover_length_ratio": partial(cover_length_ratio, k=top_k)}
    sums: dict[str, np.ndarray] = {}
    count = 0
    for batch in batches:
        expected = traced(teacher, batch, "attention_probs")
        maps = {name: traced(student, batch, "attention_probs") for name, student in students.items()}
        check_same_shapes({"teacher": expected, **maps})
        count += len(expected[0])
        for measure, compute in measures.items():
            values = np.stack([_layers(own, expected, batch, compute) for own in maps.values()])
            sums[measure] = sums.get(measure, 0) + values
    means = {measure: total / count for measure, total in sums.items()}
    return AttentionComparison(list(students), count, top_k, **means)


def _layers(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], batch: Batch, compute: Measure
) -> np.ndarray:
    """One measure summed over the sequences of a batch, (layers, heads)."""
    pairs = (sequences(batch, *maps) for maps in zip(student, teacher, strict=True))
    return np.stack([sum(compute(*pair).double().cpu().numpy() for pair in layer) for layer in pairs])


def plot_attention(result: AttentionComparison) -> Figure:
    """A panel a measure: the mean over heads against the layer, the heads' range shaded."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    panels = figure.subplots(2, 2).flat
    layers = np.arange(result.kl.shape[1])
    for axes, (measure, title) in zip(panels, TITLES.items(), strict=True):
        for name, values in zip(result.students, getattr(result, measure), strict=True):
            (line,) = axes.plot(layers, values.mean(-1), marker="o", label=name)
            axes.fill_between(layers, values.min(-1), values.max(-1), alpha=0.12, color=line.get_color(), lw=0)
        axes.set(title=title, xlabel="layer", xticks=layers)
        if measure == "kl" and result.kl.max() > 0:
            axes.set_yscale("log")
    figure.axes[0].legend(fontsize="small")
    figure.suptitle(f"Distance of the attention maps from the teacher's, {result.sequences} sequences")
    return figure


def summarize_attention(result: AttentionComparison) -> list[list[str]]:
    """The means over layers and heads as rows of a table, the header first."""
    means = {measure: getattr(result, measure).mean((1, 2)) for measure in TITLES}
    rows = [[name, *(f"{means[m][i]:.4g}" for m in TITLES)] for i, name in enumerate(result.students)]
    return [["student", *TITLES.values()], *rows]
