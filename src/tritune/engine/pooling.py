"""From the states of a sentence's tokens to one vector, as sentence-transformers' Pooling and Normalize define it.

In numpy and of one sentence without padding; `tasks.heads.pooling` is its twin in torch, of padded batches.
"""

from collections.abc import Callable, Sequence

import numpy as np


def _weighted_mean(states: np.ndarray) -> np.ndarray:
    """The n-th token weighs n."""
    weights = np.arange(1, len(states) + 1, dtype=states.dtype)[:, None]
    return (states * weights).sum(0) / weights.sum()


# By the names of sentence-transformers; each from states, (tokens, width), of at least one token.
MODES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cls": lambda states: states[0],
    "max": lambda states: states.max(0),
    "mean": lambda states: states.sum(0) / np.float32(len(states)),
    "mean_sqrt_len_tokens": lambda states: states.sum(0) / np.sqrt(np.float32(len(states))),
    "weightedmean": _weighted_mean,
    "lasttoken": lambda states: states[-1],
}


def pooled(states: np.ndarray, modes: Sequence[str], normalize: bool) -> np.ndarray:
    """The embedding of a sentence, float32, (modes * width).

    Args:
        states: of its tokens, float32, (tokens, width).
        modes: names of `MODES`; what several of them give is put side by side, in their order.
        normalize: whether to scale the vector to length 1; a vector of zeros stays as it is.

    >>> pooled(np.float32([[1, 0], [3, 8]]), ("cls", "mean"), normalize=False)
    array([1., 0., 2., 4.], dtype=float32)
    """
    vector = np.concatenate([MODES[mode](states) for mode in modes])
    if not normalize:
        return vector
    length = np.float32(np.sqrt(np.square(vector, dtype=np.float64).sum()))
    return vector / max(length, np.float32(1e-12))
