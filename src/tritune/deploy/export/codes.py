"""The codes and scales of a model's quantized modules, however a module stores them."""

from dataclasses import dataclass

import torch
from torch import nn

from ...checkpoints.packed import PackedConv2d, PackedEmbedding, PackedLinear
from ...errors import TrituneError
from ...modeling.layers import QuantConv2d, QuantEmbedding, QuantLinear


@dataclass(frozen=True)
class Codes:
    """A quantized weight.

    Attributes:
        codes: int8, shaped like the weight; (out channels, flat kernel) of a convolution.
        scale: float, broadcastable against the codes.
        every: the codes of its quantizer.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    every: range

    @property
    def are_odd(self) -> bool:
        """Whether only odd codes occur: they are stored as the whole numbers whose doubles lie one below them."""
        return self.every.step == 2

    @property
    def stored(self) -> torch.Tensor:
        """What is stored of `codes`: themselves, or (codes - 1) / 2 of odd ones; int8."""
        return (self.codes - 1) // 2 if self.are_odd else self.codes

    @property
    def bits(self) -> int:
        """The narrowest signed integer of 2, 4 or 8 bits that holds what is stored: ONNX has no others."""
        ends = [(code - 1) // 2 if self.are_odd else code for code in (self.every[0], self.every[-1])]
        return next(bits for bits in (2, 4, 8) if all(end in signed(bits) for end in ends))


def signed(bits: int) -> range:
    """The values of a signed integer with this many bits.

    >>> signed(2)
    range(-2, 2)
    """
    return range(-(2 ** (bits - 1)), 2 ** (bits - 1))


def codes_of(module: nn.Module) -> Codes | None:
    """The quantized weight of `module`, or None where its weight is float.

    Raises:
        TrituneError: its weight is not scale * codes.
    """
    if isinstance(module, QuantLinear | QuantEmbedding | QuantConv2d) and module.weight_quantizer is not None:
        if module.weight_quantizer.has_offset:
            raise TrituneError(f"weights quantized by {type(module.weight_quantizer).__name__} cannot be exported")
        return Codes(*module.weight_quantizer.quantize(module.weight.flatten(1)), module.weight_quantizer.codes)
    if isinstance(module, PackedLinear | PackedEmbedding | PackedConv2d):
        quantizer = module.weight_quantizer
        codes, scale = quantizer.restore_integers(module.codes, module.weight_scale, torch.float32)
        return Codes(codes.to(torch.int8), scale, quantizer.codes)
    return None
