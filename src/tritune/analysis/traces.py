"""Traces of a batch, and the parts of them that belong to real tokens."""

from collections.abc import Iterator, Mapping

import torch
from transformers import PreTrainedModel

from ..compute.held import weights_held
from ..errors import TrituneError
from ..modeling.modes import evaluation_mode
from ..modeling.trace import ModelTrace
from .subjects import Batch


def trace_of(model: PreTrainedModel, batch: Batch, *fields: str) -> ModelTrace:
    """The trace of `model` on its own, in evaluation mode and without a gradient.

    Args:
        model: instrumented.
        batch: keyword arguments of the model; labels are left out.
        *fields: of `trace.TRACE_FIELDS`.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with evaluation_mode(model), weights_held(), torch.no_grad():
        return model(**inputs, output_trace=fields).trace


def real_tokens(batch: Batch) -> torch.Tensor | None:
    """Bool, (batch, tokens), True where there is no padding; None where nothing is padded (images)."""
    mask = batch.get("attention_mask")
    return None if mask is None else mask.bool()


def sequences(batch: Batch, *tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Row by row, the tensors without their padding.

    Args:
        batch: what the tensors were computed from.
        *tensors: attention maps, (batch, heads, query, key).

    Yields:
        Of every row the tensors, (heads, query, key), real queries and keys only.
    """
    real = real_tokens(batch)
    for row in range(len(tensors[0])):
        parts = tuple(tensor[row] for tensor in tensors)
        yield parts if real is None else tuple(part[:, real[row]][:, :, real[row]] for part in parts)


def check_same_shapes(traces: Mapping[str, ModelTrace], field: str) -> None:
    """Raise TrituneError if the first layer's `field`, or the number of layers, differs between models."""
    shapes = {name: (len(trace.layers), *getattr(trace.layers[0], field).shape) for name, trace in traces.items()}
    (first, expected), *others = shapes.items()
    for name, shape in others:
        if shape != expected:
            raise TrituneError(
                f"{name}: its {field} of {shape[0]} layers have shape {shape[1:]}, those of {first} "
                f"{expected[0]} layers and {expected[1:]}; only models of one shape can be compared"
            )
