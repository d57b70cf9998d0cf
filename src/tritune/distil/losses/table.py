"""The table of the losses: the name in a recipe, what a loss reads, and how it is computed.

TernaryBERT (EMNLP 2020) distils logits, hidden states and attention scores; Teacher Intervention (EACL 2023) adds the
attention block's output; *Understanding and Improving KD* (EMNLP 2022) the attention map.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .embedding import embedding_loss
from .ground_truth import ground_truth_loss
from .layers import attention_maps_loss, attention_scores_loss, hidden_states_loss, token_loss
from .logits import logits_loss
from .next_token import token_scaled_logits_loss
from .pair import Pair


@dataclass(frozen=True)
class Loss:
    """A row of the table.

    Attributes:
        compute: the loss of a `Pair`, a scalar.
        fields: of the traces, `LayerTrace`'s or `hidden_states`, that it reads.
    """

    compute: Callable[[Pair], torch.Tensor]
    fields: tuple[str, ...] = ()


LOSSES: dict[str, Loss] = {
    "logits": Loss(logits_loss),
    "token_scaled_logits": Loss(token_scaled_logits_loss),
    "hidden_states": Loss(hidden_states_loss, ("hidden_states",)),
    "attention_scores": Loss(attention_scores_loss, ("attention_scores",)),
    "attention_map": Loss(attention_maps_loss, ("attention_probs",)),
    "block_output": Loss(token_loss("attention_block_output"), ("attention_block_output",)),
    "context": Loss(token_loss("context"), ("context",)),
    "projection": Loss(token_loss("attention_projection"), ("attention_projection",)),
    "ground_truth": Loss(ground_truth_loss),
    "embedding": Loss(embedding_loss),
}


def distillation_losses(pair: Pair, coefficients: dict[str, float]) -> dict[str, torch.Tensor]:
    """Every loss of `LOSSES` whose coefficient is not zero, unweighted, by name; each a scalar."""
    return {name: LOSSES[name].compute(pair) for name, weight in coefficients.items() if weight}


def trace_fields(coefficients: dict[str, float]) -> frozenset[str]:
    """The trace fields that these losses read."""
    return frozenset(field for name, weight in coefficients.items() if weight for field in LOSSES[name].fields)
