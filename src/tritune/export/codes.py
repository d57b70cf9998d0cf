"""The codes and scales of a model's quantized modules: the one place where export asks how a module holds them."""

from dataclasses import dataclass

import torch
from torch import nn

from ..layers import QuantEmbedding, QuantLinear


@dataclass(frozen=True)
class Codes:
    """A quantized weight.

    Attributes:
        codes: int8, shaped like the weight.
        scale: float, broadcastable against the codes.
        bits: width of a code.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    bits: int

    def dequantize(self) -> torch.Tensor:
        """The float weight, scale * codes."""
        return self.codes.to(self.scale.dtype) * self.scale


def codes_of(module: nn.Module) -> Codes | None:
    """The quantized weight of `module`, or None where its weight is float."""
    if isinstance(module, QuantLinear | QuantEmbedding) and module.weight_quantizer is not None:
        return Codes(*module.weight_quantizer.quantize(module.weight), module.weight_quantizer.bits)
    return None
