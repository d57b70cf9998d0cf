"""BWN: binary weights with the mean as scale (Rastegari et al. 2016, "XNOR-Net", arXiv 1603.05279).

With w_hat = scale * sign(w) the least-squares optimum is scale = mean|w| (section 3.1). The gradient is the
straight-through one of `Ternary`; XNOR-Net multiplies it by 1/n + scale, which Adam takes out again.
"""

from dataclasses import dataclass

import torch

from .granularity import Granularity, wide_dtype
from .quantizer import Quantizer


def signs(values: torch.Tensor) -> torch.Tensor:
    """-1 or 1; the sign of 0 is 1.

    >>> signs(torch.tensor([-0.5, 0.0, 2.0]))
    tensor([-1.,  1.,  1.])
    """
    return values.sign().add_(0.5).sign_()


@dataclass(frozen=True)
class Binary(Quantizer):
    """Codes -1 and 1, the mean magnitude (after the clip) as scale."""

    granularity: Granularity = Granularity.TENSOR
    clip: float = 2.5
    bits = 1
    weight_bits = (1,)
    codes = range(-1, 2, 2)

    def _encode(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        magnitude = values.to(wide_dtype(values)).abs()
        dims = self.granularity.dims(values)
        peak = magnitude.amax(dims, keepdim=True)
        scale = magnitude.clamp_(max=self.clip).mean(dims, keepdim=True)
        return signs(values).to(scale.dtype), scale, peak
