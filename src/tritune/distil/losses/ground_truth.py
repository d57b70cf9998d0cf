"""The task's own loss, on the labels."""

import torch
from torch.nn import functional as F

from ...errors import TrituneError
from .means import hide, mean_where, wide
from .next_token import IGNORED, next_token_cross_entropy
from .pair import Pair, positions


def ground_truth_loss(pair: Pair) -> torch.Tensor:
    """Cross-entropy on the labels; of an answer's start and end their mean.

    Raises:
        TrituneError: the batch has no labels.
    """
    labels = pair.labels
    if labels is None:
        raise TrituneError("the loss ground_truth needs labels, and the batch has none")
    if pair.causal:
        return next_token_cross_entropy(pair.student.logits, labels, pair.token_mask)
    if places := positions(pair.student):
        start, end = wide(*places)
        if pair.token_mask is not None:
            start, end = (hide(logits, pair.token_mask == 0) for logits in (start, end))
        # A position beyond the window is one that the model cannot point at.
        labels = labels.masked_fill(labels >= start.shape[-1], IGNORED)
        return _labelled(torch.stack([start, end], dim=1), labels, pair.average)
    (logits,) = wide(pair.student.logits)
    if pair.regression:
        return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
    if pair.multi_label:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    if logits.ndim == 3:
        return _labelled(logits, labels, pair.average)
    return class_cross_entropy(logits, labels, pair.class_weights)


def class_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over the rows of the weight of a row's class times its cross-entropy.

    Not divided by the sum of the weights in the batch, as torch would: the mean then does not depend on how rows are
    split over batches and processes.

    Args:
        logits: (batch, classes).
        labels: class ids, (batch,).
        weights: (classes,); None weighs all alike.
    """
    if weights is None:
        return F.cross_entropy(logits, labels)
    return (weights.to(logits)[labels] * F.cross_entropy(logits, labels, reduction="none")).mean()


def _labelled(logits: torch.Tensor, labels: torch.Tensor, average: str) -> torch.Tensor:
    """Mean cross-entropy of (batch, places, classes) over the places whose label, (batch, places), counts."""
    labels = labels.masked_fill(labels < 0, IGNORED)
    values = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
    return mean_where(values, labels != IGNORED, average)
