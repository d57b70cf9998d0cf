"""The codes and scales of a model's quantized modules: the one place where export asks how a module holds them."""

from dataclasses import dataclass

import torch
from torch import nn

from ..layers import QuantEmbedding, QuantLinear
from ..packed import PackedEmbedding, PackedLinear


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


def codes_of(module: nn.Module) -> Codes | None:
    """The quantized weight of `module`, or None where its weight is float."""
    if isinstance(module, QuantLinear | QuantEmbedding) and module.weight_quantizer is not None:
        return Codes(*module.weight_quantizer.quantize(module.weight), module.weight_quantizer.bits)
    if isinstance(module, PackedLinear | PackedEmbedding):
        quantizer = module.weight_quantizer
        codes, scale = quantizer.restore_integers(module.codes, module.weight_scale, torch.float32)
        return Codes(codes.to(torch.int8), scale, quantizer.bits)
    return None
