"""The loss of a sentence encoder's embeddings."""

import torch

from ...errors import TrituneError
from .layers import SMALLEST_PROBABILITY
from .means import wide
from .pair import Pair


def embedding_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """|s - t|^2 / |t|^2, mean over the batch; for embeddings of length 1 that is 2 (1 - cosine).

    The squared distance of *Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation* (Reimers
    & Gurevych, EMNLP 2020, eq. 1), measured in the teacher's own length so that neither width nor scale sets its weight
    among the other losses.

    Args:
        student, teacher: pooled embeddings, (batch, width).
    """
    student, teacher = wide(student, teacher)
    lengths = teacher.square().sum(-1).clamp(min=SMALLEST_PROBABILITY)
    return ((student - teacher).square().sum(-1) / lengths).mean()


def embedding_loss(pair: Pair) -> torch.Tensor:
    """`embedding_distance` of the pooled embeddings."""
    if pair.embeddings is None:
        raise TrituneError("embedding: only a sentence encoder has one, and here none is read")
    return embedding_distance(*pair.embeddings)
