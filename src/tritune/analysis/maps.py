"""How far one attention map is from another: four measures, each per head.

All take probabilities of one sequence without its padding, `(heads, query, key)`, so that padding never counts, and
return one number per head, `(heads,)`.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from ..distil.losses import SMALLEST_PROBABILITY


def map_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of the rows, mean over the rows (EMNLP 2022, eq. 7, one head at a time).

    Probabilities are clamped at 1e-8, as in `distil.losses.attention_map_kl`.
    """
    student, teacher = (probs.clamp(min=SMALLEST_PROBABILITY) for probs in (student, teacher))
    return (teacher * (teacher.log() - student.log())).sum(-1).mean(-1)


def map_cosine(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Cosine between a row of the student's map and the teacher's, mean over the rows."""
    return F.cosine_similarity(student, teacher, dim=-1).mean(-1)


def ranking_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """How much of the teacher's order of keys the student turns around (EMNLP 2022, section 4).

    Over the query rows, the sum over keys i in 0..n-2 and j in 1..n-1 of max(0, -(s_i - s_j) sign(t_i - t_j)): the
    published definition, a sum, so long sentences have larger losses. Where the teacher's values are equal there is no
    order to turn around.
    """
    # All pairs of keys, each in both orders, less those that the published bounds leave out.
    last, first = (_turned_around(student, teacher, at) for at in (-1, 0))
    left_out = last.sum(-1) + first.sum(-1) - last[..., 0]
    return (2 * _inversions(student, teacher) - left_out).sum(-1)


def _turned_around(student: torch.Tensor, teacher: torch.Tensor, at: int) -> torch.Tensor:
    """The loss of the pairs of every key with the one at position `at`, (..., query, key)."""
    own, teachers = (probs - probs[..., at, None] for probs in (student, teacher))
    return (own * teachers.sign()).neg().clamp(min=0)


def _inversions(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Of every row, (..., query, key), the sum of |s_i - s_j| over the pairs that student and teacher order otherwise.

    With the keys in the teacher's descending order such a pair is a later value that is larger than an earlier one.
    Ties of the teacher keep the student's order, so they count as no inversion.
    """
    by_student = student.argsort(dim=-1, descending=True)
    by_teacher = teacher.gather(-1, by_student).argsort(dim=-1, descending=True, stable=True)
    ordered = student.gather(-1, by_student).gather(-1, by_teacher).movedim(-1, 0).contiguous()
    total = torch.zeros_like(ordered[0])
    for position in range(len(ordered) - 1):
        total += (ordered[position + 1 :] - ordered[position]).clamp_(min=0).sum(0)
    return total


def cover_length_ratio(student: torch.Tensor, teacher: torch.Tensor, k: int = 5) -> torch.Tensor:
    """How far down the student's order of keys the teacher's top k reach (EMNLP 2022, section 4).

    For every query row but the last: the largest rank, from 0, in the student's descending order at which one of the
    teacher's k largest keys is found, over n; summed over the rows and divided by n. That is the published definition;
    equal values are ranked in the order of their keys. A sequence of one token has no row to look at: 0.
    """
    length = student.shape[-1]
    order = student[:, :-1].argsort(dim=-1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(-1, order, torch.arange(length, device=order.device).expand_as(order))
    top = teacher[:, :-1].argsort(dim=-1, descending=True, stable=True)[..., :k]
    deepest = ranks.gather(-1, top).amax(-1).to(student.dtype)
    return (deepest / length).sum(-1) / length


Measure = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

MEASURES: dict[str, Measure] = {
    "kl": map_kl,
    "ranking_loss": ranking_loss,
    "cover_length_ratio": cover_length_ratio,
    "cosine": map_cosine,
}
