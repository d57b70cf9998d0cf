"""Losses of the logits against the teacher's."""

import torch
from torch.nn import functional as F

from .means import hide, mean_where, total, wide
from .pair import Pair, positions


def soft_cross_entropy(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """-sum p_T log p_S, mean over the batch (TernaryBERT, eq. 9).

    Args:
        student, teacher: logits, (batch, classes).
        temperature: t divides both models' logits; the result is then multiplied by t^2, so that gradients keep their
            size whatever t is (Hinton et al., Distilling the Knowledge in a Neural Network, section 2).
    """
    student, teacher = (logits / temperature for logits in wide(student, teacher))
    return temperature**2 * -(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1).mean()


def binary_soft_cross_entropy(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """-(p_T log p_S + (1 - p_T) log(1 - p_S)) with p = sigmoid(logit), mean over batch and labels.

    What `soft_cross_entropy` is for classes that exclude each other, for labels each of which is a yes or no of its
    own; a mean over the labels, as is the binary cross-entropy of the ground truth.

    Args:
        student, teacher: logits, (batch, labels).
        temperature: as in `soft_cross_entropy`.
    """
    student, teacher = (logits / temperature for logits in wide(student, teacher))
    return temperature**2 * F.binary_cross_entropy_with_logits(student, teacher.sigmoid())


def binary_kl_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of labels each of which is a yes or no of its own, summed over them, mean over the batch.

    Args:
        student, teacher: logits, (batch, labels).
    """
    student, teacher = wide(student, teacher)
    return total(
        F.kl_div(F.logsigmoid(sign * student), F.logsigmoid(sign * teacher), reduction="batchmean", log_target=True)
        for sign in (1, -1)
    )


def token_soft_cross_entropy(
    student: torch.Tensor,
    teacher: torch.Tensor,
    token_mask: torch.Tensor | None,
    average: str,
    temperature: float = 1.0,
) -> torch.Tensor:
    """`soft_cross_entropy` of every token's class (token classification).

    Args:
        student, teacher: logits, (batch, tokens, classes).
        token_mask: (batch, tokens), 1 for real tokens; None when there is no padding.
        average: `padded` or `valid`.
        temperature: see `soft_cross_entropy`.
    """
    student, teacher = (logits / temperature for logits in wide(student, teacher))
    per_token = temperature**2 * -(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1)
    if average == "padded" or token_mask is None:
        token_mask = torch.ones_like(per_token)
    return mean_where(per_token, token_mask, average)


def position_soft_cross_entropy(
    student: torch.Tensor, teacher: torch.Tensor, token_mask: torch.Tensor | None, temperature: float = 1.0
) -> torch.Tensor:
    """`soft_cross_entropy` over the positions of a sequence (where an answer starts, or ends).

    Padding is no position that an answer could have, so it is left out whatever the average.

    Args:
        student, teacher: logits, (batch, tokens).
        token_mask: (batch, tokens), 1 for real tokens; None when there is no padding.
        temperature: see `soft_cross_entropy`.
    """
    if token_mask is None:
        return soft_cross_entropy(student, teacher, temperature)
    hidden = token_mask == 0
    student, teacher = (hide(logits / temperature, hidden) for logits in wide(student, teacher))
    terms = (teacher.softmax(-1) * student.log_softmax(-1)).masked_fill(hidden, 0)
    return temperature**2 * -terms.sum(-1).mean()


def kl_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student), mean over the batch: `soft_cross_entropy` minus the teacher's entropy.

    Args:
        student, teacher: logits, (batch, classes).
    """
    student, teacher = wide(student, teacher)
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)


def logits_loss(pair: Pair) -> torch.Tensor:
    """Soft cross-entropy; of an answer's start and end their mean, as in the task's own loss."""
    if places := positions(pair.student):
        both = zip(places, positions(pair.teacher), strict=True)
        return total(position_soft_cross_entropy(*one, pair.token_mask, pair.temperature) for one in both) / 2
    student, teacher = pair.student.logits, pair.teacher.logits
    if pair.regression:
        student, teacher = wide(student, teacher)
        return F.mse_loss(student, teacher)
    if pair.multi_label:
        return binary_soft_cross_entropy(student, teacher, pair.temperature)
    if student.ndim == 3:
        return token_soft_cross_entropy(student, teacher, pair.token_mask, pair.average, pair.temperature)
    return soft_cross_entropy(student, teacher, pair.temperature)
