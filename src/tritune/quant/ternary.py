"""Ternary weights: codes -1, 0, +1 and one positive scale per tensor or per row.

Two ways to choose threshold and scale: `Ternary` is TWN's closed form (Li et al. 2016, arXiv 1605.04711), which
TernaryBERT (EMNLP 2020) uses; `LeastSquaresTernary` finds the true minimum of ||w - scale * codes||^2 that TWN
approximates, by trying every threshold at once.
"""

from dataclasses import dataclass

import torch

from .granularity import Granularity, wide_dtype
from .quantizer import Quantizer
from .ste import surely_inside


def ternarize(
    weight: torch.Tensor, granularity: Granularity = Granularity.TENSOR, threshold_factor: float = 0.7
) -> tuple[torch.Tensor, torch.Tensor]:
    """TWN: threshold = 0.7 * mean|w|, scale = mean of |w| above the threshold.

    Args:
        weight: float, any shape.
        granularity: the values that share a threshold and a scale.
        threshold_factor: the 0.7 of TWN (arXiv 1605.04711, eq. 6).

    Returns:
        codes, int8 in {-1, 0, 1}, shaped like `weight`; scale, float, broadcastable against it. An all-zero row has
        codes 0 and scale 0.

    >>> ternarize(torch.tensor([[1.0, -3.0, 0.1]]), Granularity.ROW)
    (tensor([[ 1, -1,  0]], dtype=torch.int8), tensor([[2.]]))
    """
    weight = weight.detach()
    codes, scale = _ternary_codes(weight, weight.to(wide_dtype(weight)).abs(), granularity, threshold_factor)
    return codes.to(torch.int8), scale


def _ternary_codes(
    weight: torch.Tensor, magnitude: torch.Tensor, granularity: Granularity, threshold_factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes as floats, written over `magnitude`, and the scale; no boolean tensor in between, see `Quantizer`."""
    dims = granularity.dims(weight)
    threshold = threshold_factor * magnitude.mean(dims, keepdim=True)
    if threshold.numel() == 1 and threshold.is_cpu and not torch.compiler.is_compiling():
        torch.threshold_(magnitude, threshold.item(), 0.0)
    else:
        # m - t is positive exactly where m > t.
        magnitude.mul_(magnitude.sub(threshold).sign_().clamp_(min=0))
    total = magnitude.sum(dims, keepdim=True)
    kept = magnitude.sign_()
    scale = total / kept.sum(dims, keepdim=True).clamp_(min=1)
    return kept.mul_(weight).sign_(), scale


def ternarize_least_squares(
    weight: torch.Tensor, granularity: Granularity = Granularity.TENSOR
) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes and scale that minimise ||weight - scale * codes||^2 exactly.

    For a fixed number k of non-zero codes the best are the k largest magnitudes, with their mean as scale, and the
    error falls by (sum of these)^2 / k; so one sort and one cumulative sum find the optimum over all k.

    Args:
        weight: float, any shape.
        granularity: the values that share a scale.

    Returns:
        codes, int8 in {-1, 0, 1}, shaped like `weight`; scale, float, broadcastable against it.
    """
    dims = granularity.dims(weight)
    vectors = weight.reshape(*weight.shape[: weight.ndim - len(dims)], -1)
    # float64: the sums of a large tensor's magnitudes decide between neighbouring thresholds.
    magnitude, order = vectors.double().abs().sort(dim=-1, descending=True)
    counts = torch.arange(1, magnitude.shape[-1] + 1, device=weight.device)
    sums = magnitude.cumsum(-1)
    best = (sums.square() / counts).argmax(-1, keepdim=True)
    scale = (sums.gather(-1, best) / (best + 1)).to(wide_dtype(weight))
    kept = torch.zeros_like(vectors, dtype=torch.bool).scatter(-1, order, counts <= best + 1)
    codes = (vectors.sign() * kept).to(torch.int8).view_as(weight)
    return codes, scale.view(*vectors.shape[:-1], *[1] * len(dims))


@dataclass(frozen=True)
class Ternary(Quantizer):
    """TWN as a weight quantizer: clip, ternarize, straight-through gradient inside the clip."""

    granularity: Granularity = Granularity.TENSOR
    clip: float = 2.5
    threshold_factor: float = 0.7
    bits = 2
    weight_bits = (2,)

    def _encode(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        magnitude = values.abs().to(wide_dtype(values))
        # Only on a CPU is it worth reading the weight once more to learn that nothing needs to be clipped.
        peak = magnitude.amax(self.granularity.dims(values), keepdim=True) if magnitude.is_cpu else None
        if not surely_inside(peak, self.clip):
            magnitude.clamp_(max=self.clip)
        return *_ternary_codes(values, magnitude, self.granularity, self.threshold_factor), peak


@dataclass(frozen=True)
class LeastSquaresTernary(Ternary):
    """`Ternary` with the exact least-squares threshold and scale instead of TWN's estimate."""

    def __init__(self, granularity: Granularity = Granularity.TENSOR, clip: float = 2.5):
        super().__init__(granularity, clip)  # no threshold factor: the threshold is found

    def _encode(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        clipped = values.to(wide_dtype(values)).clamp(-self.clip, self.clip)
        codes, scale = ternarize_least_squares(clipped, self.granularity)
        return codes.to(clipped.dtype), scale, clipped.abs().amax(self.granularity.dims(values), keepdim=True)
