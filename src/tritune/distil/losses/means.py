"""What the means of the losses run over, and what they are taken in.

`average` is `padded`, every entry as in the published code, whose balance of losses then depends on the padding; or
`valid`, unpadded tokens only, first within a sequence and then over the batch, so that neither padding nor the way a
batch is split over devices changes anything. Whatever precision the models computed in, losses are taken in float32 or
wider.
"""

from collections.abc import Iterable
from functools import reduce

import torch

from ...quant.granularity import wide_dtype


def wide(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors in float32 or wider."""
    return [tensor.to(wide_dtype(tensor)) for tensor in tensors]


def total(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of at least one term."""
    return reduce(torch.add, terms)


def token_weight(token_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(batch, tokens): 1/length at real tokens, 0 at padding; an empty sequence weighs nothing."""
    mask = token_mask.to(dtype)
    return mask / mask.sum(-1, keepdim=True).clamp(min=1)


def hide(logits: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Logits that say no; finite, because a sequence may be hidden whole."""
    return logits.masked_fill(hidden, torch.finfo(logits.dtype).min)


def mean_where(values: torch.Tensor, counted: torch.Tensor, average: str) -> torch.Tensor:
    """Mean of (batch, places) where `counted` is 1: of all together, or `valid`, first within a row."""
    if average == "padded":
        return (values * counted).sum() / counted.sum().clamp(min=1)
    return (values * token_weight(counted, values.dtype)).sum(-1).mean()
