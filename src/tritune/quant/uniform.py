"""Symmetric uniform quantization with a dynamic scale: the 8-bit activations of both papers, and 3- to 8-bit weights.

The scale comes from the largest magnitude of the tensor at hand, so there is nothing to calibrate. Values are formed as
code / (levels / largest) and not as code * (largest / levels): that is what the published implementation computes, and
only so are our forward passes equal to it to the last bit.
"""

from dataclasses import dataclass

import torch

from .granularity import Granularity, wide_dtype
from .quantizer import Quantizer
from .ste import surely_inside

# Small enough never to change a real scale, large enough that levels / it stays finite in float32.
SMALLEST_MAGNITUDE = 1e-30


@dataclass(frozen=True)
class Uniform(Quantizer):
    """Codes -(2^(bits-1) - 1) ... 2^(bits-1) - 1, the largest magnitude at the last one.

    The gradient passes where |x| < clip (TernaryBERT, section 3.2). Rounding is to the nearest code, ties to even.

    >>> Uniform(bits=8).quantize(torch.tensor([0.0, 0.5, -1.0]))[0]
    tensor([   0,   64, -127], dtype=torch.int8)
    """

    bits: int = 8
    granularity: Granularity = Granularity.TENSOR
    clip: float = 2.5
    weight_bits = tuple(range(3, 9))
    activation_bits = tuple(range(2, 9))

    def _encode(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        peak = _peak(values, self.granularity).to(wide_dtype(values))
        codes_per_unit = self.largest_code / peak.clamp(SMALLEST_MAGNITUDE, self.clip)
        wide = values.to(codes_per_unit.dtype)
        codes = (wide * codes_per_unit if wide is values else wide.mul_(codes_per_unit)).round_()
        if not surely_inside(peak, self.clip):
            # What lies outside the clip lies beyond the last code too: it is enough to clip the codes.
            codes.clamp_(-self.largest_code, self.largest_code)
        return codes, codes_per_unit, peak

    def _decode(self, codes: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
        return codes.div_(unit)

    def _scale(self, unit: torch.Tensor) -> torch.Tensor:
        return 1 / unit

    def _stored_scale(self, unit: torch.Tensor) -> torch.Tensor:
        # In float32 one over one over a number is not always that number; from float64 the float32 comes back exactly.
        return 1 / unit.double()

    def _unit(self, stored_scale: torch.Tensor) -> torch.Tensor:
        return (1 / stored_scale.double()).float()


def _peak(values: torch.Tensor, granularity: Granularity) -> torch.Tensor:
    """Largest magnitudes, with the reduced dimensions kept; one reading of the values, none written."""
    if granularity is Granularity.TENSOR:
        low, high = torch.aminmax(values)
        return torch.maximum(-low, high).view([1] * values.ndim)
    dims = granularity.dims(values)
    low, high = torch.aminmax(values.flatten(-len(dims)), dim=-1)
    return torch.maximum(-low, high).view(*values.shape[: -len(dims)], *[1] * len(dims))
