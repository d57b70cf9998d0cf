"""The table of the losses: the name in a recipe, what a loss reads, and how it is computed.

TernaryBERT (EMNLP 2020) distils logits, hidden states and attention scores; Teacher Intervention (EACL 2023) adds the
attention block's output; *Understanding and Improving KD* (EMNLP 2022) the attention map.
"""

import dataclasses
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ...errors import TrituneError, check_new_name, shown
from ...modeling.trace import LayerTrace
from ..choices import REGISTERED_LOSSES, keep_loss
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


_LOSSES = {
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
LOSSES: Mapping[str, Loss] = ChainMap(_LOSSES, REGISTERED_LOSSES)


def register_loss(
    name: str, fields: Sequence[str] = (), *, exist_ok: bool = False
) -> Callable[[Callable[[Pair], torch.Tensor]], Callable[[Pair], torch.Tensor]]:
    """Decorator: a loss of one's own under a name, for the mapping `losses` of a recipe.

    It is a function of a `Pair` that returns a scalar.

    Args:
        name: letters, digits and underscores; of none that ships.
        fields: of `LayerTrace`, or "hidden_states", that it reads from the traces; only these are recorded.
        exist_ok: replace one registered before.

    Raises:
        TrituneError: the name is taken, a field is unknown, or what is registered cannot be called.
    """

    def register(compute: Callable[[Pair], torch.Tensor]) -> Callable[[Pair], torch.Tensor]:
        where = "register_loss"
        check_new_name(where, name, _LOSSES if exist_ok else LOSSES)
        known = {field.name for field in dataclasses.fields(LayerTrace)} | {"hidden_states"}
        if isinstance(fields, str) or not known.issuperset(fields):
            names = ", ".join(sorted(known))
            raise TrituneError(f"{where}: the fields of {name} must be of {names}; got {shown(fields)}")
        if not callable(compute):
            raise TrituneError(f"{where}: {name} must be a function; got {shown(compute)}")
        keep_loss(name, Loss(compute, tuple(fields)))
        return compute

    return register


def distillation_losses(pair: Pair, coefficients: dict[str, float]) -> dict[str, torch.Tensor]:
    """Every loss of `LOSSES` whose coefficient is not zero, unweighted, by name; each a scalar."""
    return {name: LOSSES[name].compute(pair) for name, weight in coefficients.items() if weight}


def trace_fields(coefficients: dict[str, float]) -> frozenset[str]:
    """The trace fields that these losses read."""
    return frozenset(field for name, weight in coefficients.items() if weight for field in LOSSES[name].fields)
