"""DoReFa-Net's weights (Zhou et al. 2016, arXiv 1606.06160).

w_hat = 2 quantize_k(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1 with quantize_k(u) = round((2^k - 1) u) / (2^k - 1) (section
2.3). The levels lie evenly in -1 ... 1 and 0 is none. They do not follow the size of the weights: a network is trained
with it from the start, and a fine-tuned one is thrown far away. Gradient: rounding is the identity and the maximum a
constant, so (1 - tanh(w)^2) / max|tanh(w)|. For one bit the paper uses BWN (`Binary`).
"""

from dataclasses import dataclass

import torch

from .granularity import Granularity, wide_dtype
from .own_graph import CodesWithGradient
from .ste import pass_through
from .uniform import SMALLEST_MAGNITUDE


@dataclass(frozen=True)
class DoReFa(CodesWithGradient):
    """Odd codes -(2^bits - 1) ... 2^bits - 1, scale 1/(2^bits - 1), whatever the weights."""

    bits: int = 2
    granularity: Granularity = Granularity.TENSOR
    weight_bits = (2, 3, 4)
    codes = property(lambda self: range(1 - 2**self.bits, 2**self.bits, 2), doc="Every code there is.")

    def _graph(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        steps = self.largest_code
        squeezed = values.to(wide_dtype(values)).tanh()
        largest = squeezed.detach().abs().amax(self.granularity.dims(values), keepdim=True)
        units = squeezed / largest.where(largest > SMALLEST_MAGNITUDE, 1) * steps
        codes = 2 * ((units + steps) / 2).round() - steps
        return pass_through(units, codes), torch.full_like(largest, 1 / steps)
