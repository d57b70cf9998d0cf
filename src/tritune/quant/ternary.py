"""Ternary weights: codes -1, 0, +1 and one positive scale per tensor or per row.

Two ways to choose threshold and scale: `Ternary` is TWN's closed form (Li et al. 2016, arXiv 1605.04711), which
TernaryBERT (EMNLP 2020) uses; `LeastSquaresTernary` finds the true minimum of ||w - scale * codes||^2 that TWN
approximates, by trying every threshold at once.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from .granularity import Granularity, wide_dtype
from .ste import straight_through


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
    dims = granularity.dims(weight)
    magnitude = weight.to(wide_dtype(weight)).abs()
    kept = magnitude > threshold_factor * magnitude.mean(dims, keepdim=True)
    scale = (magnitude * kept).sum(dims, keepdim=True) / kept.sum(dims, keepdim=True).clamp(min=1)
    return (weight.sign() * kept).to(torch.int8), scale


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
class Ternary:
    """TWN as a weight quantizer: clip, ternarize, straight-through gradient inside the clip."""

    granularity: Granularity = Granularity.TENSOR
    clip: float = 2.5
    threshold_factor: float = 0.7
    bits: ClassVar[int] = 2

    def quantize(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Float weight, any shape, to int8 codes of that shape and their broadcastable scale."""
        return ternarize(weight.clamp(-self.clip, self.clip), self.granularity, self.threshold_factor)

    def dequantize(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Codes and scale back to float: scale * codes."""
        return codes.to(scale.dtype) * scale

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """`fake_quantize`: float of any shape to float, with the straight-through gradient."""
        with torch.no_grad():
            quantized = self.dequantize(*self.quantize(weight)).to(weight.dtype)
        return straight_through(weight, quantized, self.clip)


@dataclass(frozen=True)
class LeastSquaresTernary(Ternary):
    """`Ternary` with the exact least-squares threshold and scale instead of TWN's estimate."""

    def quantize(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Float weight, any shape, to int8 codes of that shape and their broadcastable scale."""
        return ternarize_least_squares(weight.clamp(-self.clip, self.clip), self.granularity)
