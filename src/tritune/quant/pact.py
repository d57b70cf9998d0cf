"""PACT: the clip of an activation is learned (Choi et al. 2018, arXiv 1805.06085).

The paper clips the outputs of a ReLU to 0 ... a (eq. 1) and learns a. The inputs of a Transformer's Linears have both
signs, so here the range is -a ... a: y = clip(x, -a, a), x_hat = a/n * round(n y/a) with n = 2^(bits-1) - 1. Gradients
(eq. 3): to x the identity where |x| < a; to a sign(x) where |x| >= a, else 0. Start: the largest magnitude of the
sample, so that nothing is clipped at first. The paper decays a with the weights; here nothing of a quantizer decays.
"""

import torch
from torch.nn import functional as F

from .calibrated import Learned
from .granularity import wide_dtype
from .ste import pass_through


class LearnedClip(Learned):
    """PACT with both signs: codes -(2^(bits-1) - 1) ... 2^(bits-1) - 1, the learned `clip` at the last one.

    Args:
        bits: 2 to 8.
        granularity: `TENSOR`.
        groups, sharing: see `Learned`; the gradient of `clip` is not scaled.
    """

    activation_bits = tuple(range(2, 9))
    learns = "clip"
    gradient_scale = 1.0

    def _start(self, values: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
        return values.abs().amax(dims, keepdim=True)

    def _graph(self, values: torch.Tensor, rows: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        clip = self._positive(values, rows)
        inside = clip * F.hardtanh(values.to(wide_dtype(values)) / clip)
        # The gradient takes rounding for the identity, so none of it reaches the clip through the scale.
        scale = clip.detach() / self.largest_code
        units = inside / scale
        return pass_through(units, units.round()), scale
