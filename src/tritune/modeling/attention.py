"""The one attention function: quantize, record, intervene.

Every family that routes its attention through transformers' `AttentionInterface` is served by `attention_forward`; no
modelling code is ours. An attention module that `instrument` has not seen gets plain softmax attention, bit for bit
that of `attn_implementation="eager"`. What an instrumented module does beyond it is held by its `AttentionState`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface

from ..compute import products
from ..quant import Granularity, Quantizer
from .forward_pass import pass_of
from .sites import Site

IMPLEMENTATION = "tritune"
WITHOUT_MASKS = "tritune_without_masks"
STATE_ATTRIBUTE = "tritune_attention"

# An additive mask hides a key with the dtype's minimum, Swin's shifted windows with -100; learned biases stay above.
_MASKED_BELOW = -50.0
# Arguments of other attention functions that change the numbers: capped scores (Gemma 2), sinks (GPT-OSS).
_NOT_SERVED = ("softcap", "s_aux")


class Products(Protocol):
    """What computes both products of attention: `tritune.compute.products`, or what an export has in its place."""

    def scores(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        query_quantizer: Quantizer | None,
        key_quantizer: Quantizer | None,
        scaling: float,
    ) -> torch.Tensor:
        """As `products.scores`."""

    def context(
        self,
        attention_probs: torch.Tensor,
        value: torch.Tensor,
        probs_quantizer: Quantizer | None,
        value_quantizer: Quantizer | None,
    ) -> torch.Tensor:
        """As `products.context`."""


@dataclass(frozen=True)
class ObservedAttention:
    """One call of our attention function, as `observe_attention` shows it.

    Attributes:
        module: the attention module that calls.
        operands: Q, K and V as they came, each (batch, heads, tokens, head width).
        context: what it gets back, (batch, query, heads, head width).
        masked: bool, broadcastable to (batch, heads, query, key), True where the mask hides a key; None without mask.
        causal: whether the model says that later tokens are hidden.
        extras: what the caller wants beyond softmax(QK^T/sqrt(d) + mask)V, and does not get.
    """

    module: nn.Module
    operands: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    context: torch.Tensor
    masked: torch.Tensor | None
    causal: bool
    extras: tuple[str, ...]


_observer: ContextVar[Callable[[ObservedAttention], None] | None] = ContextVar("observer", default=None)


@dataclass(eq=False)
class AttentionState:
    """What an attention module does beyond plain attention; no forward pass changes it.

    Attributes:
        owner: what all attention modules of the model have in common, by which they know its forward pass.
        layers: the layers that this module computes, in order of its calls (one, unless layers share weights).
        query, key, attention_probs, value: quantizers of the operands of both products, None when off.
        products: what computes both products; None for `tritune.compute.products`.
    """

    owner: object = field(repr=False)
    layers: tuple[int, ...]
    query: Quantizer | None = None
    key: Quantizer | None = None
    attention_probs: Quantizer | None = None
    value: Quantizer | None = None
    products: Products | None = None


_PLAIN = AttentionState(None, (0,))


def attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention with quantized products, traces and Teacher Intervention.

    Args:
        module: the attention module that calls.
        query, key, value: (batch, heads, tokens, head width); K and V may have fewer heads, each of which then serves
            as many heads of Q in a row (grouped queries, Ainslie et al. 2023, arXiv 2305.13245).
        attention_mask: additive, broadcastable to (batch, heads, query, key), or None.
        scaling: of QK^T; 1/sqrt(head width) when None.
        dropout: rate on the probabilities, 0 in evaluation.
        **kwargs: what other attention functions take; only `find_anatomy` looks at it, and refuses what is not served.

    Returns:
        The context, (batch, query, heads, head width), and the probabilities that were used.
    """
    operands = query, key, value
    if key.shape[1] != query.shape[1]:
        key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for tensor in (key, value))
    state = getattr(module, STATE_ATTRIBUTE, _PLAIN)
    forward_pass = pass_of(state.owner)
    forward_pass.enter(state, state.layers)
    arithmetic: Products = state.products or products
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling

    scores = arithmetic.scores(query, key, state.query, state.key, scaling)
    masked = None
    if attention_mask is not None:
        scores = scores + attention_mask
        masked = attention_mask < _MASKED_BELOW
    attention_probs = F.softmax(scores, dim=-1)
    if forward_pass.trace is not None:
        forward_pass.trace.layers[-1].masked = masked
    forward_pass.keep(attention_scores=scores, attention_probs=attention_probs)

    attention_probs = F.dropout(forward_pass.replace(Site.MAP, attention_probs), dropout, module.training)
    context = arithmetic.context(
        attention_probs, seen_value(value, masked, state.value), state.attention_probs, state.value
    )
    forward_pass.keep(context=context)
    context = forward_pass.replace(Site.CONTEXT, context).transpose(1, 2).contiguous()

    observe = _observer.get()
    if observe is not None:
        said = kwargs.get("is_causal")
        causal = bool(getattr(module, "is_causal", False) if said is None else said)  # as transformers decides it
        extras = tuple(name for name in _NOT_SERVED if kwargs.get(name) is not None)
        observe(ObservedAttention(module, operands, context, masked, causal, extras))
    return context, attention_probs


def seen_value(value: torch.Tensor, masked: torch.Tensor | None, quantizer: Quantizer | None) -> torch.Tensor:
    """V, (batch, heads, key, head width); a scale per sequence and head must not see tokens that nobody attends to."""
    if masked is None or quantizer is None or quantizer.granularity is not Granularity.HEAD:
        return value
    return value.masked_fill(masked.all(dim=-2, keepdim=True).transpose(-2, -1), 0)


@contextmanager
def observe_attention(callback: Callable[[ObservedAttention], None]) -> Iterator[None]:
    """Within the context, call `callback` at every attention call."""
    token = _observer.set(callback)
    try:
        yield
    finally:
        _observer.reset(token)


# In the place of its stand-in, see `checkpoints/registration.py`, which enters the masks, too.
AttentionInterface.register(IMPLEMENTATION, attention_forward)
# Under this name transformers makes no masks: on the meta device it could not look at their values.
AttentionInterface.register(WITHOUT_MASKS, attention_forward)
