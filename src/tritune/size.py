"""Sizes computed from bit widths: what a model takes once its codes are packed, before anything is packed."""

import math

from torch import nn

from .layers import QuantEmbedding, QuantLinear
from .quant import Calibrated, Granularity, Quantizer

_SCALE_BYTES = 4


def size_bytes(model: nn.Module) -> int:
    """Bytes of all parameters: codes at their bit width and one float32 scale per group, the rest as it is stored.

    Parameters that modules share count once, and the learned scale of a weight as its scale. Buffers and file headers
    do not count.

    >>> size_bytes(nn.Linear(8, 4))
    144
    """
    quantizers = {
        id(module.weight): module.weight_quantizer
        for module in model.modules()
        if isinstance(module, QuantLinear | QuantEmbedding)
    }
    learned = {
        id(p) for quantizer in quantizers.values() if isinstance(quantizer, Calibrated) for p in quantizer.parameters()
    }
    return sum(_parameter_bytes(p, quantizers.get(id(p))) for p in model.parameters() if id(p) not in learned)


def _parameter_bytes(parameter: nn.Parameter, quantizer: Quantizer | None) -> int:
    if quantizer is None:
        return parameter.numel() * parameter.element_size()
    scales = 1 if quantizer.granularity is Granularity.TENSOR else parameter.shape[0]
    numbers = 2 if quantizer.has_offset else 1
    return math.ceil(parameter.numel() * quantizer.code_bits / 8) + scales * numbers * _SCALE_BYTES
