"""Elastic binarization: a learned scale and a learned shift (Liu et al. 2022, "BiT", arXiv 2205.13016, section 3.2).

For the levels -1 and 1: w_hat = scale * sign((w - shift) / scale). Gradients, with u = (w - shift) / scale: to w the
identity where |u| < 1; to scale sign(u) - u there, else sign(u); to shift -1 there, else 0. Start: scale = mean|w| and
shift = 0, which is BWN (`Binary`).
"""

import torch
from torch import nn
from torch.nn import functional as F

from .binary import signs
from .calibrated import Learned
from .granularity import Granularity, wide_dtype
from .ste import pass_through


class ElasticBinary(Learned):
    """Codes -1 and 1, a learned `scale` and a learned `shift` (which decides codes, and no value depends on it).

    Args:
        bits: 1.
        granularity: `TENSOR` or `ROW`.
        groups, sharing: see `Learned`; `shift` has the shape of `scale`.
    """

    weight_bits = (1,)
    learns = "scale"
    codes = range(-1, 2, 2)

    def __init__(
        self,
        bits: int = 1,
        granularity: Granularity = Granularity.TENSOR,
        groups: tuple[int, ...] = (),
        sharing: int = 1,
    ):
        super().__init__(bits, granularity, groups, sharing)
        self.shift = nn.Parameter(torch.zeros(groups))

    def _start(self, values: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
        return values.abs().mean(dims, keepdim=True)

    def _graph(self, values: torch.Tensor, rows: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        scale = self._positive(values, rows)
        shifted = values.to(wide_dtype(values)) - self._broadcast(self.shift, values, rows)
        units = F.hardtanh(shifted / scale)
        return pass_through(units, signs(shifted)), scale
