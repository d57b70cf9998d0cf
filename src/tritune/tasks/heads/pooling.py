"""From the states of a sentence's tokens to one vector, as sentence-transformers' Pooling and Normalize define it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ...quant.granularity import wide_dtype


def _mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1)


def _mean_sqrt_length(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1).sqrt()


def _weighted_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The n-th real token weighs n."""
    return _mean(states, mask.cumsum(1) * mask)


def _max(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return states.masked_fill(mask == 0, -torch.inf).amax(1)


def _first(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    place = mask.argmax(1, keepdim=True).expand(-1, -1, states.shape[-1])
    return states.gather(1, place).squeeze(1)


def _last(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _first(states.flip(1), mask.flip(1))


# By the names of sentence-transformers; each from states (batch, tokens, width) and a mask (batch, tokens, 1).
POOLINGS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cls": _first,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_length,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}


@dataclass(frozen=True)
class Pooling:
    """Makes one vector a sentence.

    Attributes:
        modes: names of `POOLINGS`; what several of them give is put side by side, in their order.
        normalize: whether the vector is then scaled to length 1.
    """

    modes: tuple[str, ...] = ("mean",)
    normalize: bool = False

    def __call__(self, states: torch.Tensor, token_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Embeddings, (batch, modes * width), in float32 or wider; that of a sentence without tokens is zero.

        >>> Pooling(("cls", "mean"))(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
        tensor([[1., 2.]])

        Args:
            states: the last hidden state, (batch, tokens, width).
            token_mask: (batch, tokens), 1 for real tokens; None when there is no padding.
        """
        states = states.to(wide_dtype(states))
        mask = states.new_ones(states.shape[:2]) if token_mask is None else token_mask.to(states.dtype)
        pooled = torch.cat([POOLINGS[mode](states, mask[..., None]) for mode in self.modes], dim=-1)
        pooled = pooled.masked_fill(~mask.any(1, keepdim=True), 0)
        return F.normalize(pooled, dim=-1) if self.normalize else pooled


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of every row of `first` to the same row of `second`, each (rows, width); 0 where a row is zero.

    >>> cosines(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[4.0, 3.0], [1.0, 0.0]]))
    array([0.96, 0.  ])
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return np.divide((first * second).sum(-1), lengths, out=np.zeros(len(first)), where=lengths > 0)
