"""Sizes computed from bit widths: what a model takes once its codes are packed, before anything is packed."""

import math

from torch import nn

from .layers import QuantEmbedding, Quantizer, QuantLinear
from .packed import PackedEmbedding, PackedLinear
from .quant import Granularity

_SCALE_BYTES = 4


def size_bytes(model: nn.Module) -> int:
    """Bytes of all parameters: codes at their bit width and one float32 scale per group, the rest as it is stored.

    Parameters that modules share count once. File headers and buffers do not count, but for the scales of a packed
    model: its size is that of its tensors.

    >>> size_bytes(nn.Linear(8, 4))
    144
    """
    quantizers = {
        id(module.weight): module.weight_quantizer
        for module in model.modules()
        if isinstance(module, QuantLinear | QuantEmbedding)
    }
    scales = [module.weight_scale for module in model.modules() if isinstance(module, PackedLinear | PackedEmbedding)]
    return sum(_parameter_bytes(p, quantizers.get(id(p))) for p in model.parameters()) + sum(s.nbytes for s in scales)


def _parameter_bytes(parameter: nn.Parameter, quantizer: Quantizer | None) -> int:
    if quantizer is None:
        return parameter.numel() * parameter.element_size()
    scales = 1 if quantizer.granularity is Granularity.TENSOR else parameter.shape[0]
    return math.ceil(parameter.numel() * quantizer.bits / 8) + scales * _SCALE_BYTES
