"""One product of two quantized operands, in the precision in force.

In float32 with a scale per tensor the operands are dequantized first: that is what the published implementation
computes, bit for bit. In two cases the operands are the codes themselves, and the scales are applied to the result:

- with a scale per token, in float32: sums of codes are exact while they stay below 2^24 (beyond it they are taken in
  float64), whatever order a matrix product adds them in. So no answer depends on the size of its batch, as float
  products do.
- in bfloat16, which holds codes exactly; dequantized values would be rounded to its 8 bits a second time. Where each
  operand has one scale, all of it is a single step of autograd, see `code_product` (where a graph is traced it
  is the separate steps, which round more often).

float16 cannot hold sums of codes (127 * 127 * 5 is too large for it), so there the operands are dequantized.
"""

from typing import TypeGuard

import torch
from torch.nn import functional as F

from ..quant import Granularity, OwnGraph, Quantizer, straight_through
from ..quant.own_graph import CodesWithGradient
from ..quant.ste import surely_inside
from .code_product import Coded, code_product
from .held import Quantize, quantized, quantized_input, quantized_weight

# Float32 holds every whole number up to this one.
_LARGEST_EXACT_SUM = 2**24


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
    dtype = _code_dtype(input, input_quantizer, weight_quantizer)
    if _is_one_step(dtype) and _has_one_scale(input_quantizer) and _has_one_scale(weight_quantizer):
        coded = _coded(input, input_quantizer, quantized_input), _coded(weight, weight_quantizer, quantized_weight)
        return code_product(*coded, bias)
    values, value_scale = _operand(input, input_quantizer, dtype, quantized_input)
    weights, weight_scale = _operand(weight, weight_quantizer, dtype, quantized_weight)
    if value_scale is None and weight_scale is None:
        return F.linear(values, weights, bias)
    product = _scaled(F.linear(values, weights), value_scale, None if weight_scale is None else weight_scale.mT)
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
    dtype = _code_dtype(query, query_quantizer, key_quantizer)
    if _is_one_step(dtype) and _has_one_scale(query_quantizer) and _has_one_scale(key_quantizer):
        return code_product(_coded(query, query_quantizer), _coded(key, key_quantizer), factor=scaling)
    queries, query_scale = _operand(query, query_quantizer, dtype)
    keys, key_scale = _operand(key, key_quantizer, dtype)
    product = torch.matmul(queries, keys.mT)
    if query_scale is None and key_scale is None:
        return product * scaling
    return _scaled(product, query_scale, None if key_scale is None else key_scale.mT, scaling)


def context(
    attention_probs: torch.Tensor,
    value: torch.Tensor,
    probs_quantizer: Quantizer | None,
    value_quantizer: Quantizer | None,
) -> torch.Tensor:
    """attention_probs @ value, both operands quantized.

    The value's scale can be applied to the result where it serves whole sequences or more. One per token lies on the
    summed axis: the probabilities take it in before they are quantized themselves.

    Args:
        attention_probs: (batch, heads, query, key).
        value: (batch, heads, key, head width).
        probs_quantizer, value_quantizer: None leaves an operand as it is.

    Returns:
        (batch, heads, query, head width).
    """
    dtype = _code_dtype(attention_probs, probs_quantizer, value_quantizer)
    if _is_one_step(dtype) and _has_one_scale(probs_quantizer) and _has_one_scale(value_quantizer):
        return code_product(_coded(attention_probs, probs_quantizer), _coded(value, value_quantizer).mT)
    if value_quantizer is not None and value_quantizer.granularity is Granularity.TOKEN:
        values, value_scale = _operand(value, value_quantizer, dtype or value.dtype)
        if value_scale is not None:
            attention_probs = (attention_probs * value_scale.mT).to(attention_probs.dtype)
        probs, probs_scale = _operand(attention_probs, probs_quantizer, dtype)
        return _scaled(torch.matmul(probs, values), probs_scale)
    probs, probs_scale = _operand(attention_probs, probs_quantizer, dtype)
    values, value_scale = _operand(value, value_quantizer, dtype)
    return _scaled(torch.matmul(probs, values), probs_scale, value_scale)


def _code_dtype(
    left: torch.Tensor, left_quantizer: Quantizer | None, right_quantizer: Quantizer | None
) -> torch.dtype | None:
    """The dtype that holds the codes of a product over the last axis of `left`, or None to dequantize first."""
    device, dtype = left.device.type, left.dtype
    # Autocast leaves float64 alone.
    if dtype is not torch.float64 and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if dtype is torch.bfloat16:
        return dtype
    if dtype is not torch.float32 or left_quantizer is None or right_quantizer is None:
        return None
    # Values with an offset are no multiples of their codes.
    if left_quantizer.granularity is not Granularity.TOKEN or left_quantizer.has_offset or right_quantizer.has_offset:
        return None
    largest_sum = left_quantizer.largest_code * right_quantizer.largest_code * left.shape[-1]
    return torch.float32 if largest_sum <= _LARGEST_EXACT_SUM else torch.float64


def _is_one_step(dtype: torch.dtype | None) -> bool:
    """Whether `code_product` takes codes in `dtype`, if each operand has one scale."""
    return dtype is torch.bfloat16 and not (torch.compiler.is_compiling() or torch.jit.is_tracing())


def _has_one_scale(quantizer: Quantizer | None) -> TypeGuard[Quantizer]:
    """Whether an operand is codes and one number to multiply them by."""
    return (
        quantizer is not None
        and quantizer.granularity is Granularity.TENSOR
        and (isinstance(quantizer, CodesWithGradient) or not isinstance(quantizer, OwnGraph))
    )


def _operand(
    values: torch.Tensor, quantizer: Quantizer | None, dtype: torch.dtype | None, quantized_by: Quantize = quantized
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What enters a product, and the scale that its result still needs."""
    if quantizer is None:
        return values, None
    if isinstance(quantizer, OwnGraph):
        return quantizer.operand(values, dtype)
    forward, scale, peak = quantized_by(values, quantizer, dtype)
    return straight_through(values, forward, quantizer.clip, peak, scale), scale


def _coded(values: torch.Tensor, quantizer: Quantizer, quantized_by: Quantize = quantized) -> Coded:
    """What enters a product that `_is_one_step`, of a quantizer that `_has_one_scale`."""
    if isinstance(quantizer, CodesWithGradient):  # asked each time: one graph serves one backward pass
        codes, scale = quantizer.coded(values, torch.bfloat16)
        return Coded(codes, codes.detach(), scale, latent_is_codes=True)
    codes, own_scale, peak = quantized_by(values, quantizer, torch.bfloat16)
    assert own_scale is not None  # only dequantized values have none
    return Coded(values, codes, own_scale, None if surely_inside(peak, quantizer.clip) else quantizer.clip)


def _scaled(product: torch.Tensor, *factors: torch.Tensor | float | None) -> torch.Tensor:
    """`product` times the factors, in its own dtype; sums taken in float64 become float32."""
    if all(factor is None for factor in factors):
        return product
    if product.dtype is not torch.bfloat16:
        product = product.float()
        for factor in factors:  # in one order, however many values share a scale: else bits would depend on the batch
            if factor is not None:
                product = product.mul_(factor)
        return product
    single, rest = None, []
    for factor in factors:
        if isinstance(factor, torch.Tensor) and (factor.numel() > 1 or not factor.is_cpu):
            rest.append(factor)
        elif factor is not None:
            # Times a tensor of no dimensions bfloat16 stays bfloat16; on a CPU the factor keeps its own precision.
            factor = factor.view(()) if isinstance(factor, torch.Tensor) else factor
            single = factor if single is None else single * factor
    if single is not None:
        product = product.mul_(single)
    if not rest:
        return product
    wide = product.to(rest[0].dtype)
    for factor in rest:  # one after the other: together they could be as large as the product, and would be kept
        wide = wide * factor
    return wide.to(product.dtype)
