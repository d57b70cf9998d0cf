"""The published "clipped uniform" quantizer of weights of 4 bits, whose clip comes from TWN's statistic.

With threshold = mean|w| (TWN's with a factor of 1 for 0.7; Li et al. 2016, arXiv 1605.04711), c = the mean of the |w|
above it and n = 2^(bits-1) - 1/2: w_hat = c/n * round(n clip(w/c, -1, 1)). At the clip n rounds up to n + 1/2 (7.5 to
8, ties to even), so 4 bits have 17 levels: it reproduces published numbers and cannot be packed. The gradient is
straight-through inside ±2.5, beyond c too.
"""

from dataclasses import dataclass

import torch

from .granularity import Granularity, wide_dtype
from .own_graph import CodesWithGradient
from .quantizer import Quantizer, largest_of_codes

_SMALLEST_MAGNITUDE = 1e-30


@dataclass(frozen=True)
class ClippedUniform(Quantizer):
    """Codes -2^(bits-1) ... 2^(bits-1), both ends included: one level more than `bits` bits can tell apart."""

    bits: int = 4
    granularity: Granularity = Granularity.TENSOR
    clip: float = 2.5
    weight_bits = (4,)
    codes = property(lambda self: range(-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) + 1), doc="Every code there is.")
    largest_code = largest_of_codes

    def _encode(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wide = values.to(wide_dtype(values))
        dims = self.granularity.dims(values)
        magnitude = wide.abs()
        peak = magnitude.amax(dims, keepdim=True)
        magnitude.clamp_(max=self.clip)
        # Where all magnitudes are equal none is above their mean.
        above = magnitude * magnitude.gt(magnitude.mean(dims, keepdim=True))
        inner_clip = above.sum(dims, keepdim=True) / above.sign().sum(dims, keepdim=True).clamp_(min=1)
        inner_clip = inner_clip.where(inner_clip > 0, peak.clamp(_SMALLEST_MAGNITUDE, self.clip))
        levels = 2 ** (self.bits - 1) - 0.5
        codes = (wide / inner_clip).clamp_(-1, 1).mul_(levels).round_()
        return codes, inner_clip / levels, peak

    def _decode(self, codes: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
        return codes.mul_(unit)

    _scale, _stored_scale, _unit = CodesWithGradient._scale, CodesWithGradient._stored_scale, CodesWithGradient._unit
