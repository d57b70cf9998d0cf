"""Symmetric uniform quantization with a dynamic scale: the 8-bit activations of both papers, and 3- to 8-bit weights.

The scale comes from the largest magnitude of the tensor at hand, so there is nothing to calibrate. Values are formed as
code / (levels / largest) and not as code * (largest / levels): that is what the published implementation computes, and
only so are our forward passes equal to it to the last bit.
"""

from dataclasses import dataclass

import torch

from .granularity import Granularity, wide_dtype
from .ste import straight_through

# Small enough never to change a real scale, large enough that levels / it stays finite in float32.
_SMALLEST_MAGNITUDE = 1e-30


@dataclass(frozen=True)
class Uniform:
    """Codes -(2^(bits-1) - 1) ... 2^(bits-1) - 1, the largest magnitude at the last one.

    The gradient passes where |x| < clip (TernaryBERT, section 3.2). Rounding is to the nearest code, ties to even.
    """

    bits: int = 8
    granularity: Granularity = Granularity.TENSOR
    clip: float = 2.5

    @property
    def largest_code(self) -> int:
        """127 for 8 bits."""
        return 2 ** (self.bits - 1) - 1

    def _codes(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Integer-valued float codes and the number of codes per unit, in float32 or wider."""
        clipped = values.to(wide_dtype(values)).clamp(-self.clip, self.clip)
        largest = clipped.abs().amax(self.granularity.dims(values), keepdim=True).clamp(min=_SMALLEST_MAGNITUDE)
        codes_per_unit = self.largest_code / largest
        return torch.round(clipped * codes_per_unit), codes_per_unit

    def quantize(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Float values, any shape, to int8 codes of that shape and their broadcastable scale.

        >>> Uniform(bits=8).quantize(torch.tensor([0.0, 0.5, -1.0]))[0]
        tensor([   0,   64, -127], dtype=torch.int8)
        """
        codes, codes_per_unit = self._codes(values)
        return codes.to(torch.int8), 1 / codes_per_unit

    def dequantize(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Codes and scale back to float: scale * codes (the last bit may differ from calling the quantizer)."""
        return codes.to(scale.dtype) * scale

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """`fake_quantize`: float of any shape to float, with the straight-through gradient."""
        with torch.no_grad():
            codes, codes_per_unit = self._codes(values)
            quantized = (codes / codes_per_unit).to(values.dtype)
        return straight_through(values, quantized, self.clip)
