"""The product of two operands that each are codes and one scale, as a single step of autograd.

Taken by themselves the scales and the bias are passes over the product and, on the way back, over its gradient and over
those of both operands. A matrix product takes one factor for nothing. So the step costs what a product of floats
costs, and each of its results is rounded once.
"""

from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from .quant.ste import inside_clip


class Coded(NamedTuple):
    """An operand.

    Attributes:
        latent: float values; they get the gradient.
        codes: what they were quantized to, same shape, in a dtype that matrix products take.
        scale: one element, positive; scale * codes are the quantized values.
        clip: the gradient passes where |latent| < clip; None lets all of it pass.
        latent_is_codes: `latent` is codes with a graph of their own; it gets their gradient, not that of the values.
    """

    latent: torch.Tensor
    codes: torch.Tensor
    scale: torch.Tensor
    clip: float | None = None
    latent_is_codes: bool = False

    @property
    def mT(self) -> "Coded":
        """With the last two dimensions exchanged."""
        return self._replace(latent=self.latent.mT, codes=self.codes.mT)


def code_product(left: Coded, right: Coded, bias: torch.Tensor | None = None, factor: float = 1.0) -> torch.Tensor:
    """Factor * left @ right.mT + bias, with the straight-through gradient of both operands.

    Args:
        left: (..., n, k).
        right: (m, k), or (..., m, k) with the leading dimensions of `left`.
        bias: (m), or None; only with a `right` of two dimensions.
        factor: a constant.

    Returns:
        (..., n, m), in the dtype of the codes. Its gradient cannot be differentiated again.
    """
    return _CodeProduct.apply(left.latent, right.latent, bias, left, right, factor)


class _CodeProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, left_latent, right_latent, bias, left: Coded, right: Coded, factor: float) -> torch.Tensor:
        """The product; of the latent values only those are kept that were clipped here and there."""
        latents = [operand.latent if operand.clip is not None else None for operand in (left, right)]
        ctx.save_for_backward(left.codes, right.codes, *latents)
        ctx.clips, ctx.dtypes = (left.clip, right.clip), (left_latent.dtype, right_latent.dtype)
        left_scale, right_scale = _number(left.scale), _number(right.scale)
        whole = left_scale * right_scale * factor
        ctx.factors = (
            whole if left.latent_is_codes else right_scale * factor,
            whole if right.latent_is_codes else left_scale * factor,
        )
        return _product(left.codes, right.codes.mT, whole, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of both latent operands and of the bias."""
        left_codes, right_codes, *latents = ctx.saved_tensors
        gradients: list[torch.Tensor | None] = [None] * 6
        if ctx.needs_input_grad[0]:
            gradients[0] = _product(grad, right_codes, ctx.factors[0])
        if right_codes.ndim == 2:
            grad, left_codes = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (grad, left_codes))
        if ctx.needs_input_grad[1]:
            gradients[1] = _product(grad.mT, left_codes, ctx.factors[1])
        for side in range(2):
            if gradients[side] is not None:
                gradients[side] = inside_clip(gradients[side].to(ctx.dtypes[side]), latents[side], ctx.clips[side])
        if ctx.needs_input_grad[2]:
            gradients[2] = grad.sum(0)
        return tuple(gradients)


def _number(scale: torch.Tensor) -> float | torch.Tensor:
    """A scale as what numbers can be multiplied with; to look at it would stall the queue of a GPU."""
    return scale.item() if scale.is_cpu else scale.view(())


def _product(
    left: torch.Tensor, right: torch.Tensor, factor: float | torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Factor * left @ right + bias: (..., n, k) and (k, m), or (..., k, m), to (..., n, m)."""
    if isinstance(factor, torch.Tensor):
        product = torch.matmul(left, right).mul_(factor)
        return product if bias is None else product.add_(bias.to(product.dtype))
    shape = *left.shape[:-1], right.shape[-1]
    if right.ndim == 2:
        rows = left.reshape(-1, left.shape[-1])
        if bias is None:
            return torch.addmm(left.new_empty(1), rows, right, beta=0, alpha=factor).view(shape)
        return torch.addmm(bias.to(left.dtype), rows, right, alpha=factor).view(shape)
    left, right = left.flatten(0, -3), right.flatten(0, -3)
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=factor).view(shape)
