"""Asymmetric uniform quantization between the smallest and the largest value, as TernaryBERT's code offers it.

With x clipped to ±clip, low = min x, high = max x and n = 2^bits - 1: x_hat = round(n (x - low)/(high - low)) / n *
(high - low) + low, in the published order of operations. 0 need not be a level, and a product of such values is not a
product of their codes: in products they enter dequantized. `MovingMinMax` takes the range from an exponential moving
average over the batches instead of the batch at hand (Jacob et al. 2018, arXiv 1712.05877, section 3.1).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from .calibrated import Calibrated
from .granularity import Granularity, wide_dtype
from .own_graph import OwnGraph
from .quantizer import Peak
from .ste import pass_through, straight_through
from .uniform import SMALLEST_MAGNITUDE

_DECAY = 0.99


class Asymmetric(OwnGraph):
    """A quantizer with an offset: codes -2^(bits-1) ... 2^(bits-1) - 1.

    What `quantize` gives as their scale is a stack of two, scale and offset, each broadcastable against the codes:
    scale * (codes - first code) + offset are the values.
    """

    has_offset: ClassVar[bool] = True
    codes = property(lambda self: range(-(2 ** (self.bits - 1)), 2 ** (self.bits - 1)), doc="Every code there is.")

    def dequantize(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Codes, and their scale and offset, back to float."""
        return (codes.to(scale.dtype) - self.codes[0]) * scale[0] + scale[1]

    def _between(
        self, values: torch.Tensor, low: torch.Tensor, high: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Peak]:
        """Codes of `values` in a range, and the range's length and lower end."""
        length = (high - low).clamp(min=SMALLEST_MAGNITUDE)
        steps = len(self.codes) - 1
        return ((values - low) / length * steps).round() + self.codes[0], torch.stack([length, low]), None

    def _decode(self, codes: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
        return (codes - self.codes[0]) / (len(self.codes) - 1) * unit[0] + unit[1]

    def _scale(self, unit: torch.Tensor) -> torch.Tensor:
        return torch.stack([unit[0] / (len(self.codes) - 1), unit[1]])

    def _stored_scale(self, unit: torch.Tensor) -> torch.Tensor:
        raise TypeError("codes with an offset are not packed")


@dataclass(frozen=True)
class MinMax(Asymmetric):
    """Asymmetric, the range of the values at hand; the gradient passes where |x| < clip."""

    bits: int = 8
    granularity: Granularity = Granularity.TENSOR
    clip: float = 2.5
    weight_bits = (8,)
    activation_bits = (4, 8)

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """`fake_quantize`: float of any shape to float."""
        return straight_through(values, self.fake(values)[0], self.clip)

    def _encode(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Peak]:
        clipped = values.to(wide_dtype(values)).clamp(-self.clip, self.clip)
        dims = self.granularity.dims(values)
        return self._between(clipped, clipped.amin(dims, keepdim=True), clipped.amax(dims, keepdim=True))


class MovingMinMax(Calibrated, Asymmetric):
    """Asymmetric, for activations: the range follows the batches of the training, and stands still in evaluation.

    A batch is quantized with the range of the batches before it; its own range joins the average when the next training
    pass begins (`advance`), so that gradient checkpointing may compute it twice. Between devices the range is that of
    the first one's batches: DDP hands its buffers to all. The gradient passes inside the range, ends
    included: the zeros of masked probabilities lie at one.

    Args:
        bits: 4 or 8.
        granularity: `TENSOR`.

    Attributes:
        low, high: the range in force, without dimensions.
        newest_low, newest_high: of the batches since `advance`.
    """

    activation_bits = (4, 8)
    low: torch.Tensor
    high: torch.Tensor
    newest_low: torch.Tensor
    newest_high: torch.Tensor

    def __init__(self, bits: int = 8, granularity: Granularity = Granularity.TENSOR):
        super().__init__(bits, granularity)
        for name in ("low", "high", "newest_low", "newest_high"):
            self.register_buffer(name, torch.zeros(()))

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """`fake_quantize`: float of any shape to float."""
        if self.calibrating:
            self.calibrate(values.detach())
        elif self.training and torch.is_grad_enabled():
            _widen(self.newest_low, self.newest_high, values.detach())
        # A copy: the buffers change before the backward pass of an accumulated batch.
        low, high = self.low.clone(), self.high.clone()
        inside = values.to(wide_dtype(values)).clamp(low, high)
        codes, unit, _ = self._between(inside.detach(), low, high)
        return pass_through(inside, self._decode(codes, unit)).to(values.dtype)

    def _encode(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Peak]:
        wide = values.to(wide_dtype(values))
        return self._between(wide.clamp(self.low, self.high), self.low, self.high)

    @torch.no_grad()
    def reset(self) -> None:
        """Empty both ranges."""
        for buffer in self.buffers():
            buffer.zero_()

    def calibrate(self, values: torch.Tensor) -> None:
        """Widen the range in force, which always holds 0."""
        _widen(self.low, self.high, values)

    @torch.no_grad()
    def advance(self) -> None:
        """The batches since the last time join the average, with a weight of 0.01; none, and nothing changes."""
        # No look at a value: it would stall a device's queue.
        weight = (1 - _DECAY) * (self.newest_high > self.newest_low)
        self.low.lerp_(self.newest_low, weight)
        self.high.lerp_(self.newest_high, weight)
        self.newest_low.zero_()
        self.newest_high.zero_()


@torch.no_grad()
def _widen(low: torch.Tensor, high: torch.Tensor, values: torch.Tensor) -> None:
    """Have a range, two tensors without dimensions that are written to, hold `values` too."""
    lowest, highest = torch.aminmax(values)
    low.copy_(torch.minimum(low, lowest))
    high.copy_(torch.maximum(high, highest))
