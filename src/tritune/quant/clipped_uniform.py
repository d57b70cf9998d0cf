"""The published "clipped uniform" quantizer of weights of 4 bits, whose clip comes from TWN's statistic.

With threshold = mean|w| (TWN's with a factor of 1 for 0.7; Li et al. 2016, arXiv 1605.04711), c = the mean of the |w|
above it and s = c / (2^(bits-1) - 1/2): w_hat = s * round(clip(w, -c, c) / s). At the clip that is 7.5 for 4 bits,
which rounds to 8, or to 7 where c/s falls short of 7.5 by a last bit: 17 levels or 15. It reproduces published numbers,
in their order of operations, and cannot be packed. The gradient is straight-through inside ±2.5, beyond c too.
"""

from dataclasses import dataclass

import torch

from .granularity import Granularity, wide_dtype
from .quantizer import Quantizer
from .uniform import SMALLEST_MAGNITUDE


@dataclass(frozen=True)
class ClippedUniform(Quantizer):
    """Codes -2^(bits-1) ... 2^(bits-1), both ends included: one level more than `bits` bits can tell apart."""

    bits: int = 4
    granularity: Granularity = Granularity.TENSOR
    clip: float = 2.5
    weight_bits = (4,)
    codes = property(lambda self: range(-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) + 1), doc="Every code there is.")

    def _encode(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wide = values.to(wide_dtype(values))
        dims = self.granularity.dims(values)
        magnitude = wide.abs()
        peak = magnitude.amax(dims, keepdim=True)
        magnitude.clamp_(max=self.clip)
        # Where all magnitudes are equal none is above their mean.
        above = magnitude * magnitude.gt(magnitude.mean(dims, keepdim=True))
        inner_clip = above.sum(dims, keepdim=True) / above.sign().sum(dims, keepdim=True).clamp_(min=1)
        inner_clip = inner_clip.where(inner_clip > 0, peak.clamp(SMALLEST_MAGNITUDE, self.clip))
        scale = inner_clip / (2 ** (self.bits - 1) - 0.5)
        return wide.clamp(-inner_clip, inner_clip).div_(scale).round_(), scale, peak
