"""Four levels in 2 bits: weights of -3, -1, 1 and 3 times half a step, without a level at 0.

A ternary code wastes one of the four that 2 bits can tell apart. For normally distributed values of deviation sigma the
best uniform quantizer with four levels has a step of 0.9957 sigma and an error of 0.119 sigma^2 (Max 1960, "Quantizing
for minimum distortion", table II); the best one with three has 0.190 sigma^2. As TWN does, the scale follows the mean
magnitude, of which sigma is sqrt(pi/2) times as much.
"""

import math
from dataclasses import dataclass

import torch

from .granularity import Granularity, wide_dtype
from .quantizer import Quantizer

# Half of Max's step, in mean magnitudes.
HALF_STEP = 0.9957 / 2 * math.sqrt(math.pi / 2)
_SMALLEST = 1e-30


@dataclass(frozen=True)
class Quaternary(Quantizer):
    """Odd codes -3 ... 3, scale = 0.624 mean|w| (after the clip), straight-through gradient inside the clip.

    >>> Quaternary().quantize(torch.tensor([0.1, -0.2, 1.5, -1.0]))[0].tolist()
    [1, -1, 3, -3]
    """

    granularity: Granularity = Granularity.TENSOR
    clip: float = 2.5
    bits = 2
    weight_bits = (2,)
    codes = range(-3, 4, 2)

    def _encode(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wide = values.to(wide_dtype(values))
        dims = self.granularity.dims(values)
        magnitude = wide.abs()
        peak = magnitude.amax(dims, keepdim=True)
        scale = HALF_STEP * magnitude.clamp_(max=self.clip).mean(dims, keepdim=True)
        # Between two odd numbers lies an even one: pairs of steps are rounded.
        pairs = (wide / (2 * scale).clamp_(min=_SMALLEST)).sub_(0.5).round_()
        return pairs.mul_(2).add_(1).clamp_(-3, 3), scale, peak
