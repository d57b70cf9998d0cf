"""The score lost by quantizing each part of a model, and gained by leaving one part float."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from ..checkpoints.plugin import is_packed
from ..checkpoints.size import size_bytes
from ..errors import TrituneError
from ..modeling.instrument import instrument_of
from ..progress import stage

KINDS = ("query_key_value", "attention_products", "attention_projection", "ffn_in", "ffn_out")
OUTSIDE = ("embeddings", "pooler", "classifier")
_MODULE_QUANTIZERS = ("weight_quantizer", "input_quantizer")
_PRODUCT_QUANTIZERS = ("query", "key", "attention_probs", "value")

Score = Callable[[PreTrainedModel], float]
# A place where a quantizer hangs: the object, the attribute, and the quantizer.
Place = tuple[Any, str, Any]
# (layer, kind); the layer is None outside the layers.
Part = tuple[int | None, str]


@dataclass(frozen=True)
class Choice:
    """One thing that a recipe can leave float, measured.

    Attributes:
        key, value: of the recipe.
        score: of the model with that part float and the rest quantized.
        size_bytes: of that model, from bit widths.
    """

    key: str
    value: Any
    score: float
    size_bytes: int


@dataclass(frozen=True)
class Sensitivity:
    """Scores of one model with parts of it quantized.

    Attributes:
        float_score, quantized_score: with nothing and with everything quantized.
        layers: counted from 0 (those that share weights are one).
        kinds: the columns of the two tables.
        alone: (layers, kinds), the score with that part quantized and all else float; NaN where nothing is.
        without: (layers, kinds), the score with that part float and all else quantized.
        outside_alone, outside_without: the same of the parts outside the layers, by name.
        choices: what a recipe can leave float: whole kinds, whole layers.
        suggestion: the best of the choices, or None where none beats the quantized score.
    """

    float_score: float
    quantized_score: float
    layers: list[int]
    kinds: list[str]
    alone: np.ndarray
    without: np.ndarray
    outside_alone: dict[str, float]
    outside_without: dict[str, float]
    choices: list[Choice]
    suggestion: Choice | None


def sensitivity(student: PreTrainedModel, score: Score) -> Sensitivity:
    """Score a QAT model with one part quantized at a time, and with one left float; nothing is trained.

    A part left float computes with its latent weights, so for a trained student `without` is the cost of quantizing
    that part, not the score of a student trained that way.

    Args:
        student: a QAT model, trained or not; restored afterwards.
        score: higher is better; called once per part.

    Raises:
        TrituneError: nothing in the model is quantized, or it is packed.
    """
    if is_packed(student):
        raise TrituneError("a packed model has no latent weights to compute with; use the run it was converted from")
    parts = _parts(student)
    if not parts:
        raise TrituneError("nothing in this model is quantized, so no part of it can be sensitive")
    layers = sorted({layer for layer, _ in parts if layer is not None})
    everything = [place for places in parts.values() for place in places]
    count = 2 + 2 * len(parts) + len(layers) + len(KINDS)

    def scored(off: list[Place]) -> float:
        """The score with these quantizers off."""
        with _off(off):
            value = float(score(student))
        shown.advance()
        return value

    with stage("sensitivity", count, "models", delay=3) as shown:
        float_score, quantized_score = scored(everything), scored([])
        alone = {part: scored([place for place in everything if place not in parts[part]]) for part in parts}
        without = {part: scored(parts[part]) for part in parts}
        choices = _choices(student, parts, layers, without, scored)
    best = max(choices, key=lambda choice: (choice.score, -choice.size_bytes))
    table = [[(layer, kind) for kind in KINDS] for layer in layers]
    return Sensitivity(
        float_score,
        quantized_score,
        layers,
        list(KINDS),
        np.array([[alone.get(part, np.nan) for part in row] for row in table]),
        np.array([[without.get(part, np.nan) for part in row] for row in table]),
        {kind: value for (layer, kind), value in alone.items() if layer is None},
        {kind: value for (layer, kind), value in without.items() if layer is None},
        choices,
        best if best.score > quantized_score else None,
    )


def _parts(student: PreTrainedModel) -> dict[Part, list[Place]]:
    """The places of the quantizers of every part."""
    instrument = instrument_of(student)
    first_layers = [state.layers[0] for state in instrument.states]
    parts: dict[Part, list[Place]] = {}
    for layer, state in zip(first_layers, instrument.states, strict=True):
        parts[layer, "attention_products"] = _places([state], _PRODUCT_QUANTIZERS)
        for kind, names in instrument.anatomy.parts([layer]).items():
            where = None if kind in OUTSIDE else layer
            parts[where, kind] = _places([student.get_submodule(name) for name in names], _MODULE_QUANTIZERS)
    return {part: places for part, places in parts.items() if places}


def _places(owners: list[Any], attributes: tuple[str, ...]) -> list[Place]:
    found = [(owner, name, getattr(owner, name, None)) for owner in owners for name in attributes]
    return [place for place in found if place[2] is not None]


@contextmanager
def _off(places: list[Place]) -> Iterator[None]:
    """Within the context these quantizers are gone."""
    for owner, name, _ in places:
        setattr(owner, name, None)
    try:
        yield
    finally:
        for owner, name, quantizer in places:
            setattr(owner, name, quantizer)


def _choices(
    student: PreTrainedModel,
    parts: dict[Part, list[Place]],
    layers: list[int],
    without: dict[Part, float],
    scored: Callable[[list[Place]], float],
) -> list[Choice]:
    """Every switch of a recipe that can be turned off, and every layer that can be left out."""
    choices = []

    def add(key: str, value: Any, off: list[Place], score: float | None = None) -> None:
        """Measure one choice, unless its score is known."""
        with _off(off):
            size = size_bytes(student)
        choices.append(Choice(key, value, scored(off) if score is None else score, size))

    for kind in dict.fromkeys(kind for _, kind in parts):
        if (None, kind) in parts:
            add(kind, False, parts[None, kind], without[None, kind])
        else:
            add(kind, False, [place for part, places in parts.items() if part[1] == kind for place in places])
    if len(layers) > 1:
        for layer in layers:
            kept = [other for other in layers if other != layer]
            add("layers", kept, [place for part, places in parts.items() if part[0] == layer for place in places])
    return choices


def plot_sensitivity(result: Sensitivity) -> Figure:
    """Two heat maps, layers by kinds of product: the loss by quantizing one part, the gain by leaving it float."""
    figure = Figure(figsize=(11, 0.45 * len(result.layers) + 3), layout="constrained")
    drops = 100 * (result.float_score - result.alone), 100 * (result.without - result.quantized_score)
    titles = "points lost with this part alone quantized", "points gained with this part alone float"
    for axes, values, title in zip(figure.subplots(1, 2, sharey=True), drops, titles, strict=True):
        spread = max(np.nanmax(np.abs(values), initial=0), 1e-9)
        image = axes.imshow(values, cmap="RdBu_r", vmin=-spread, vmax=spread, aspect="auto")
        axes.set_xticks(range(len(result.kinds)), [kind.replace("_", "\n") for kind in result.kinds], fontsize="small")
        axes.set_yticks(range(len(result.layers)), result.layers)
        for (row, column), value in np.ndenumerate(values):
            axes.text(
                column, row, "" if np.isnan(value) else f"{value:.1f}", ha="center", va="center", fontsize="small"
            )
        axes.set_title(title, fontsize="medium")
        figure.colorbar(image, ax=axes)
    figure.axes[0].set_ylabel("layer")
    figure.suptitle(f"float {100 * result.float_score:.1f}, quantized {100 * result.quantized_score:.1f}")
    return figure


def summarize_sensitivity(result: Sensitivity) -> list[list[str]]:
    """The choices, best first, as rows of a table, the header first."""
    ordered = sorted(result.choices, key=lambda choice: -choice.score)
    rows = [["nothing", f"{100 * result.quantized_score:.1f}", ""]]
    rows += [[f"{c.key}: {c.value}", f"{100 * c.score:.1f}", f"{c.size_bytes / 1e6:.2f}"] for c in ordered]
    return [
        ["left float (in the recipe)", "score", "MB"],
        *rows,
        ["everything", f"{100 * result.float_score:.1f}", ""],
    ]
