"""Losses of what happens inside: within a layer a mean, over layers a sum."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from .means import token_weight, total, wide
from .pair import Pair

# Keeps log-probabilities finite where a probability underflows; the value of the published code.
SMALLEST_PROBABILITY = 1e-8


def token_mse(
    student: torch.Tensor, teacher: torch.Tensor, token_mask: torch.Tensor | None, average: str
) -> torch.Tensor:
    """Mean squared difference of token vectors (hidden states, block outputs, projections, contexts).

    Args:
        student, teacher: (batch, tokens, width) or (batch, heads, tokens, width).
        token_mask: (batch, tokens), 1 for real tokens; None when there is no padding.
        average: `padded` or `valid`.
    """
    student, teacher = wide(student, teacher)
    if average == "padded" or token_mask is None:
        return F.mse_loss(student, teacher)
    per_token = (student - teacher).square().mean(-1)
    weight = token_weight(token_mask, per_token.dtype)
    if per_token.ndim == 3:
        weight = weight[:, None]
    return (per_token * weight).sum(-1).mean()


def attention_score_mse(
    student: torch.Tensor,
    teacher: torch.Tensor,
    masked: torch.Tensor | None,
    token_mask: torch.Tensor | None,
    average: str,
) -> torch.Tensor:
    """Mean squared difference of attention scores with masked entries zeroed (TernaryBERT, eq. 8).

    Args:
        student, teacher: (batch, heads, query, key).
        masked: bool, broadcastable to them, True where the mask hides a key; None without mask.
        token_mask: (batch, tokens), 1 for real tokens; None when there is no padding.
        average: `padded` or `valid`.
    """
    student, teacher = wide(student, teacher)
    difference = student - teacher
    if masked is not None:
        difference = difference.masked_fill(masked, 0)
    if average == "padded" or token_mask is None:
        return difference.square().mean()
    weight = token_weight(token_mask, difference.dtype)
    return (difference.square() * weight[:, None, :, None] * weight[:, None, None, :]).sum((-2, -1)).mean()


def attention_map_kl(student: torch.Tensor, teacher: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
    """KL(teacher || student) of attention rows (Understanding KD for QAT, EMNLP 2022, eq. 7).

    Summed over the real rows and keys and divided by the true length, then the mean over batch and heads; padding never
    counts, so there is no `average` to choose.

    Args:
        student, teacher: attention probabilities, (batch, heads, query, key).
        token_mask: (batch, tokens), 1 for real tokens; None when there is no padding.
    """
    student, teacher = (probs.clamp(min=SMALLEST_PROBABILITY) for probs in wide(student, teacher))
    divergence = teacher * (teacher.log() - student.log())
    if token_mask is None:
        return divergence.sum(-1).mean()
    rows = (divergence * token_mask[:, None, None, :]).sum(-1)
    return (rows * token_weight(token_mask, rows.dtype)[:, None]).sum(-1).mean()


def hidden_states_loss(pair: Pair) -> torch.Tensor:
    """`token_mse` of every layer's output."""
    return total(token_mse(*states, pair.token_mask, pair.average) for states in pair.hidden_states())


def attention_scores_loss(pair: Pair) -> torch.Tensor:
    """`attention_score_mse` of every layer."""
    return total(
        attention_score_mse(*scores, student.masked, pair.token_mask, pair.average)
        for scores, (student, _) in zip(pair.traced("attention_scores"), pair.traces(), strict=True)
    )


def attention_maps_loss(pair: Pair) -> torch.Tensor:
    """`attention_map_kl` of every layer."""
    return total(attention_map_kl(*maps, pair.token_mask) for maps in pair.traced("attention_probs"))


def token_loss(field: str) -> Callable[[Pair], torch.Tensor]:
    """`token_mse` of one field of every layer's trace."""

    def compute(pair: Pair) -> torch.Tensor:
        return total(token_mse(*values, pair.token_mask, pair.average) for values in pair.traced(field))

    return compute
