"""One product of two quantized operands, in the precision in force.

In float32 the operands are dequantized first: that is what the published implementation computes, bit for bit. In
bfloat16 the operands are the codes themselves, which bfloat16 holds exactly, and the scales are applied to the result;
dequantized values would be rounded to the 8 bits of a bfloat16 a second time. float16 cannot hold sums of codes
(127 * 127 * 5 is too large for it), so there too the operands are dequantized.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch.nn import functional as F

from .quant import Quantizer, straight_through

_QUANTIZED = "tritune_quantized"
_held_weights: ContextVar[set[torch.Tensor] | None] = ContextVar("held_weights", default=None)


@contextmanager
def weights_held() -> Iterator[None]:
    """Within the context a weight is quantized once and again only when it has changed.

    A change is seen by autograd's count of in-place operations. What goes around it (`weight.data.mul_(2)`) needs
    `forget_weights`; therefore nothing is held unless somebody opens this context.
    """
    token = _held_weights.set(set())
    try:
        yield
    finally:
        forget_weights()
        _held_weights.reset(token)


def forget_weights() -> None:
    """Drop what `weights_held` holds: the next product quantizes its weight anew."""
    held = _held_weights.get() or set()
    for weight in held:
        if hasattr(weight, _QUANTIZED):
            delattr(weight, _QUANTIZED)
    held.clear()


def linear(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    input_quantizer: Quantizer | None,
    weight_quantizer: Quantizer | None,
) -> torch.Tensor:
    """Input @ weight.T + bias, both operands quantized.

    Args:
        input: (..., in features).
        weight: (out features, in features), latent.
        bias: (out features), or None.
        input_quantizer, weight_quantizer: None leaves an operand as it is.

    Returns:
        (..., out features).
    """
    dtype = _integer_dtype(input)
    # Q, K and V are fed the same tensor.
    values, value_scale = _operand(input, input_quantizer, dtype, keep=True)
    held = _held_weights.get()
    weights, weight_scale = _operand(weight, weight_quantizer, dtype, keep=held is not None)
    if held is not None:
        held.add(weight)
    if value_scale is None and weight_scale is None:
        return F.linear(values, weights, bias)
    factor = _factor(value_scale, None if weight_scale is None else weight_scale.mT)
    product = _scaled(F.linear(values, weights), factor)
    return product if bias is None else product.add_(bias.to(product.dtype))


def scores(
    query: torch.Tensor,
    key: torch.Tensor,
    query_quantizer: Quantizer | None,
    key_quantizer: Quantizer | None,
    scaling: float,
) -> torch.Tensor:
    """Scaling * query @ key.T, both operands quantized.

    Args:
        query, key: (batch, heads, tokens, head width).
        query_quantizer, key_quantizer: None leaves an operand as it is.
        scaling: 1/sqrt(head width), usually.

    Returns:
        (batch, heads, query, key).
    """
    dtype = _integer_dtype(query)
    queries, query_scale = _operand(query, query_quantizer, dtype)
    keys, key_scale = _operand(key, key_quantizer, dtype)
    factor = _factor(query_scale, None if key_scale is None else key_scale.mT)
    product = torch.matmul(queries, keys.mT)
    return product * scaling if factor is None else _scaled(product, factor * scaling)


def context(
    attention_probs: torch.Tensor,
    value: torch.Tensor,
    probs_quantizer: Quantizer | None,
    value_quantizer: Quantizer | None,
) -> torch.Tensor:
    """attention_probs @ value, both operands quantized; the value's scale serves whole sequences or more.

    Args:
        attention_probs: (batch, heads, query, key).
        value: (batch, heads, key, head width).
        probs_quantizer, value_quantizer: None leaves an operand as it is.

    Returns:
        (batch, heads, query, head width).
    """
    dtype = _integer_dtype(value)
    probs, probs_scale = _operand(attention_probs, probs_quantizer, dtype)
    values, value_scale = _operand(value, value_quantizer, dtype)
    factor = _factor(probs_scale, value_scale)
    product = torch.matmul(probs, values)
    return product if factor is None else _scaled(product, factor)


def _integer_dtype(tensor: torch.Tensor) -> torch.dtype | None:
    """bfloat16 where products are computed in it, else None."""
    device = tensor.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype
    return dtype if dtype is torch.bfloat16 else None


def _operand(
    values: torch.Tensor, quantizer: Quantizer | None, dtype: torch.dtype | None, keep: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What enters a product, and the scale that its result still needs."""
    if quantizer is None:
        return values, None
    quantized, scale, peak = (_quantized_once if keep else _quantized)(values, quantizer, dtype)
    return straight_through(values, quantized, quantizer.clip, peak, scale), scale


Quantized = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]


def _quantized(values: torch.Tensor, quantizer: Quantizer, dtype: torch.dtype | None) -> Quantized:
    """Quantized values or codes, the codes' scale, and the largest magnitude; without a gradient."""
    if dtype is not None:
        return quantizer.integers(values, dtype)
    quantized, peak = quantizer.fake(values)
    return quantized, None, peak


def _quantized_once(values: torch.Tensor, quantizer: Quantizer, dtype: torch.dtype | None) -> Quantized:
    """`_quantized`, kept with the tensor as long as it lives and used again until it changes in place."""
    # Inference tensors cannot tell whether they changed.
    if values.is_inference():
        return _quantized(values, quantizer, dtype)
    key = (quantizer, dtype, values._version)
    known = getattr(values, _QUANTIZED, None)
    if known is None or known[0] != key:
        known = (key, _quantized(values, quantizer, dtype))
        setattr(values, _QUANTIZED, known)
    return known[1]


def _factor(left: torch.Tensor | None, right: torch.Tensor | None) -> torch.Tensor | None:
    """The product of those of two scales that there are."""
    if left is None or right is None:
        return right if left is None else left
    return left * right


def _scaled(product: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """`product` times `factor`, in the product's own dtype."""
    # Times a tensor of no dimensions bfloat16 stays bfloat16, and the factor keeps its own precision.
    if factor.numel() == 1:
        return product.mul_(factor.view(()))
    return (product.to(factor.dtype) * factor).to(product.dtype)
