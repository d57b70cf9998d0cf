"""The distillation losses: a file for each family of them, as functions of tensors, and the table that names them.

Begin with `LOSSES` in `table.py`; what a loss is given is in `pair.py`, what its mean runs over in `means.py`.
"""

from .embedding import embedding_distance
from .layers import SMALLEST_PROBABILITY, attention_map_kl, attention_score_mse, token_mse
from .logits import (
    binary_kl_divergence,
    binary_soft_cross_entropy,
    kl_divergence,
    position_soft_cross_entropy,
    soft_cross_entropy,
    token_soft_cross_entropy,
)
from .next_token import IGNORED, next_token_cross_entropy, token_scaled_soft_cross_entropy
from .pair import MULTI_LABEL, Pair
from .table import LOSSES, Loss, distillation_losses, register_loss, trace_fields

__all__ = [
    "IGNORED",
    "LOSSES",
    "MULTI_LABEL",
    "SMALLEST_PROBABILITY",
    "Loss",
    "Pair",
    "attention_map_kl",
    "attention_score_mse",
    "binary_kl_divergence",
    "binary_soft_cross_entropy",
    "distillation_losses",
    "embedding_distance",
    "kl_divergence",
    "next_token_cross_entropy",
    "position_soft_cross_entropy",
    "register_loss",
    "soft_cross_entropy",
    "token_mse",
    "token_scaled_soft_cross_entropy",
    "token_soft_cross_entropy",
    "trace_fields",
]
