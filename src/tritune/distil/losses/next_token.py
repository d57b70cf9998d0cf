"""Losses of causal language models, whose logits at a token are about the next one.

Token-scaled logit distillation (Kim et al., "Token-Scaled Logit Distillation for Ternary Weight Generative Language
Models", NeurIPS 2023, arXiv 2308.06744) weighs the soft cross-entropy of each token by how unsure the teacher is of the
true one: where it is sure, its logits say little more than the label does, and a student of few bits overfits to them.
"""

import torch
from torch.nn import functional as F

from ...errors import TrituneError
from .means import wide
from .pair import Pair

# The label of a token that has none, as transformers writes it.
IGNORED = -100
# Of the softmax over tokens, as published.
TOKEN_TEMPERATURE = 10.0


def token_scaled_soft_cross_entropy(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    token_mask: torch.Tensor | None = None,
    token_temperature: float = TOKEN_TEMPERATURE,
) -> torch.Tensor:
    """sum_t scale_t (-sum_v p_T(t, v) log p_S(t, v)), mean over the batch (TSLD, arXiv 2308.06744).

    scale = softmax over the tokens t of -log p_T(t, true next token) / token_temperature. The published code sums over
    the batch; a mean keeps the loss's size whatever the batch is.

    Args:
        student, teacher: logits, (batch, tokens, vocabulary).
        labels: token ids, (batch, tokens), not shifted; -100 where there is none.
        token_mask: (batch, tokens), 1 for real tokens; None when there is no padding.
        token_temperature: the larger, the more alike are the tokens' weights.
    """
    student, teacher = wide(student[:, :-1], teacher[:, :-1])
    targets = _targets(labels, token_mask)
    unsure = F.cross_entropy(teacher.detach().transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)
    ignored = targets == IGNORED
    scale = (unsure / token_temperature).masked_fill(ignored, -torch.inf).softmax(-1)
    scale = scale.masked_fill(ignored, 0)  # a sequence without any label has a softmax of nothing
    per_token = -(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1)
    return (scale * per_token).sum(-1).mean()


def next_token_cross_entropy(
    student: torch.Tensor, labels: torch.Tensor, token_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """-log p_S of the true next token, mean over the tokens that have one.

    Args:
        student: logits, (batch, tokens, vocabulary).
        labels, token_mask: as `token_scaled_soft_cross_entropy` takes them.
    """
    targets = _targets(labels, token_mask)
    (logits,) = wide(student[:, :-1])
    values = F.cross_entropy(logits.transpose(1, 2), targets, reduction="sum", ignore_index=IGNORED)
    return values / (targets != IGNORED).sum().clamp(min=1)


def _targets(labels: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
    """The token after each but the last, (batch, tokens - 1); -100 where it is padding or has no label."""
    targets = labels[:, 1:]
    return targets if token_mask is None else targets.masked_fill(token_mask[:, 1:] == 0, IGNORED)


def token_scaled_logits_loss(pair: Pair) -> torch.Tensor:
    """`token_scaled_soft_cross_entropy` of a causal language model.

    Raises:
        TrituneError: it is another model, or its batch has no labels.
    """
    if not pair.causal or pair.labels is None:
        raise TrituneError("token_scaled_logits: only for a causal language model whose batches have labels")
    return token_scaled_soft_cross_entropy(pair.student.logits, pair.teacher.logits, pair.labels, pair.token_mask)
