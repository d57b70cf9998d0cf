"""The learned maps that bring a student's hidden states to the teacher's width (TinyBERT, EMNLP Findings 2020)."""

from collections.abc import Sequence

import torch
from torch import nn


class HiddenProjection(nn.Module):
    """H W_h for the layers' hidden states and E W_e for the embeddings' (TinyBERT, eq. 8 and 9).

    It belongs to the training, not to the student: it starts anew with every phase, and nothing of it is saved but in
    checkpoints.

    Args:
        student_width, teacher_width: of the hidden states.
        seed: of the first weights, which keep the size of what goes through.
    """

    def __init__(self, student_width: int, teacher_width: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embeddings, self.layers = (
            nn.Parameter(torch.randn(student_width, teacher_width, generator=generator) * student_width**-0.5)
            for _ in range(2)
        )

    def forward(self, states: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The embeddings and every layer's output, (batch, tokens, student width), in the teacher's width."""
        embeddings, *layers = (state.to(self.layers.dtype) for state in states)
        return embeddings @ self.embeddings, *(state @ self.layers for state in layers)
