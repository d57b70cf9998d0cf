"""Learned projections of a student's hidden states to the teacher's width (TinyBERT, EMNLP Findings 2020)."""

from collections.abc import Sequence

import torch
from torch import nn


class HiddenProjection(nn.Module):
    """H W_h for the layers' hidden states and E W_e for the embeddings' (TinyBERT, eq. 8 and 9).

    It belongs to the training, not to the student: it is initialized in every phase, and saved in checkpoints only.

    Args:
        student_width, teacher_width: of the hidden states.
        seed: of the initial weights, which preserve the scale of their input.
    """

    def __init__(self, student_width: int, teacher_width: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embeddings, self.layers = (
            nn.Parameter(torch.randn(student_width, teacher_width, generator=generator) * student_width**-0.5)
            for _ in range(2)
        )

    def forward(self, states: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Project embeddings and layer outputs, each (batch, tokens, student width), to the teacher's width."""
        embeddings, *layers = (state.to(self.layers.dtype) for state in states)
        return embeddings @ self.embeddings, *(state @ self.layers for state in layers)
