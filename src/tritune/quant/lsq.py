"""LSQ: the step between two levels is learned (Esser et al. 2020, "Learned Step Size Quantization", arXiv 1902.08153).

With s the step (here `scale`) and -Q_N ... Q_P the codes, eq. 1 and 2: x_hat = s * round(clip(x/s, -Q_N, Q_P)).
Gradients: to x the identity where -Q_N < x/s < Q_P (eq. 5); to s (eq. 3) round(x/s) - x/s there, -Q_N below, Q_P above,
times 1/sqrt(values that share s * Q_P) (section 2.2). Start: s = 2 mean|x| / sqrt(Q_P) (section 2.1).
"""

import math

import torch
from torch.nn import functional as F

from .calibrated import Learned
from .granularity import wide_dtype
from .ste import pass_through


class LearnedStep(Learned):
    """LSQ for weights and activations: codes -2^(bits-1) ... 2^(bits-1) - 1 and a learned `scale`.

    Args:
        bits: 2 to 8.
        granularity: `TENSOR`, or for weights `ROW`.
        groups, sharing: see `Learned`.

    >>> step = LearnedStep(bits=4)
    >>> step.reset()
    >>> step.calibrate(torch.tensor([-0.5, 1.5]))
    >>> round(step.scale.item(), 4)
    0.7559
    """

    weight_bits = activation_bits = tuple(range(2, 9))
    learns = "scale"
    codes = property(lambda self: range(-(2 ** (self.bits - 1)), 2 ** (self.bits - 1)), doc="Every code there is.")

    def _start(self, values: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
        return 2 * values.abs().mean(dims, keepdim=True) / math.sqrt(self.codes[-1])

    def _graph(self, values: torch.Tensor, rows: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        scale = self._positive(values, rows)
        units = F.hardtanh(values.to(wide_dtype(values)) / scale, self.codes[0], self.codes[-1])
        return pass_through(units, units.round()), scale
