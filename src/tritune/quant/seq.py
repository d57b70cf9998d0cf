"""SEQ: stretched elastic quantization (Liu et al. 2025, "ParetoQ", arXiv 2502.02631, eq. 4 to 6).

For few bits a level at 0 leaves the two sides unequal. SEQ has 2^(bits-1) levels on either side and none at 0: with
k = 2^bits and c the learned clip, w_hat = c * (round(clip(w/c, -1, 1) * k/2 - 1/2) + 1/2) * 2/k, so for 2 bits the
levels are -3/4, -1/4, 1/4 and 3/4 of c. Gradients: to w the identity where |w/c| < 1; to c w_hat/c - w/c there, else
w_hat/c. Start: c = max|w|. The gradient scale is LSQ's.
"""

import torch
from torch.nn import functional as F

from .calibrated import Learned
from .granularity import wide_dtype
from .ste import pass_through


class StretchedElastic(Learned):
    """Odd codes -(2^bits - 1) ... 2^bits - 1, a learned `clip`, scale = clip / 2^bits.

    Args:
        bits: 2 or 3.
        granularity: `TENSOR` or `ROW`.
        groups, sharing: see `Learned`.
    """

    weight_bits = (2, 3)
    learns = "clip"
    codes = property(lambda self: range(1 - 2**self.bits, 2**self.bits, 2), doc="Every code there is.")

    def _start(self, values: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
        return values.abs().amax(dims, keepdim=True)

    def _graph(self, values: torch.Tensor, rows: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        clip = self._positive(values, rows)
        units = F.hardtanh(values.to(wide_dtype(values)) / clip) * 2**self.bits
        codes = (2 * (units / 2 - 0.5).round() + 1).clamp(self.codes[0], self.codes[-1])
        return pass_through(units, codes), clip / 2**self.bits
