"""Traces of a batch, and the parts of them that belong to real tokens."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from transformers import PreTrainedModel

from ..compute.held import weights_held
from ..errors import TrituneError
from ..modeling.modes import evaluation_mode
from .subjects import Batch


def traced(model: PreTrainedModel, batch: Batch, field: str) -> list[torch.Tensor]:
    """One tensor of every layer of `model` on its own, in evaluation mode and without a gradient.

    Args:
        model: instrumented.
        batch: keyword arguments of the model; labels are left out.
        field: one of `trace.TRACE_FIELDS`; of `hidden_states` the embeddings' output comes first.

    Returns:
        Tensors of the shapes that `trace.LayerTrace` gives.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with evaluation_mode(model), weights_held(), torch.no_grad():
        trace = model(**inputs, output_trace=[field]).trace
    return list(trace.hidden_states) if field == "hidden_states" else [getattr(layer, field) for layer in trace.layers]


def real_tokens(batch: Batch) -> torch.Tensor | None:
    """Bool, (batch, tokens), True where there is no padding; None where nothing is padded (images)."""
    mask = batch.get("attention_mask")
    return None if mask is None else mask.bool()


def sequences(batch: Batch, *maps: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Row by row, the attention maps without their padding.

    Args:
        batch: what the maps were computed from.
        *maps: (batch, heads, query, key).

    Yields:
        The maps of a row, each (heads, query, key), with its real queries and keys only.
    """
    real = real_tokens(batch)
    for row in range(len(maps[0])):
        yield tuple(part[row] if real is None else part[row][:, real[row]][:, :, real[row]] for part in maps)


def check_same_shapes(traces: Mapping[str, Sequence[torch.Tensor]]) -> None:
    """Raise TrituneError if the number of tensors, or the shape of the first, differs between models."""
    shapes = {name: (len(tensors), *tensors[0].shape) for name, tensors in traces.items()}
    (first, expected), *others = shapes.items()
    for name, shape in others:
        if shape != expected:
            raise TrituneError(
                f"{name}: has {shape[0]} layers' tensors of shape {shape[1:]}, {first} has {expected[0]} of shape "
                f"{expected[1:]}; only models of one shape can be compared"
            )
