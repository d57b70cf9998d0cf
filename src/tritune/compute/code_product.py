"""The product of two operands that each are codes and one scale, as a single step of autograd.

Taken by themselves the scales and the bias are passes over the product and, on the way back, over its gradient and over
those of both operands. On a CPU a matrix product takes one factor for nothing: there the step costs what a product of
floats costs, and each of its results is rounded once. On a GPU the factor stays on the device, a pass of its own.
"""

from dataclasses import dataclass, replace

import torch

from ..errors import TrituneError
from ..quant.ste import inside_clip


@dataclass(frozen=True)
class Coded:
    """An operand.

    Attributes:
        latent: what gets the gradient: the float values, shaped like the codes; of any shape if it wants none.
        codes: what they were quantized to, in a dtype that matrix products take.
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
        return replace(self, latent=self.latent.mT, codes=self.codes.mT)


def code_product(left: Coded, right: Coded, bias: torch.Tensor | None = None, factor: float = 1.0) -> torch.Tensor:
    """Factor * left @ right.mT + bias, with the straight-through gradient of both operands.

    Args:
        left: (..., n, k).
        right: (m, k), or (..., m, k) with the leading dimensions of `left`.
        bias: (m), or None; only with a `right` of two dimensions.
        factor: a constant.

    Returns:
        (..., n, m), in the dtype of the codes. To differentiate its gradient again raises TrituneError.
    """
    return _CodeProduct.apply(left.latent, right.latent, bias, left, right, factor)


class _CodeProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, left_latent, right_latent, bias, left: Coded, right: Coded, factor: float) -> torch.Tensor:
        """The product. Kept is what the wanted gradients need: of latent values those that were clipped somewhere."""
        wants_left, wants_right = ctx.needs_input_grad[:2]
        ctx.save_for_backward(
            left.codes if wants_right else None,
            right.codes if wants_left else None,
            left_latent if wants_left and left.clip is not None else None,
            right_latent if wants_right and right.clip is not None else None,
        )
        ctx.clips, ctx.dtypes = (left.clip, right.clip), (left_latent.dtype, right_latent.dtype)
        ctx.is_linear = right.codes.ndim == 2
        left_scale, right_scale = _number(left.scale), _number(right.scale)
        whole = left_scale * right_scale * factor
        ctx.factors = (
            whole if left.latent_is_codes else right_scale * factor,
            whole if right.latent_is_codes else left_scale * factor,
        )
        return _product(left.codes, right.codes.mT, whole, bias)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of both latent operands and of the bias."""
        if torch.is_grad_enabled():
            # The codes are constants here: a second derivative would lack terms and say nothing of it.
            raise TrituneError("products in bfloat16 have no second derivative; use the model in float32")
        left_codes, right_codes, *latents = ctx.saved_tensors
        of_left = of_right = of_bias = None
        if ctx.needs_input_grad[0]:
            of_left = _product(grad, right_codes, ctx.factors[0]).to(ctx.dtypes[0])
            of_left = inside_clip(of_left, latents[0], ctx.clips[0])
        if ctx.is_linear:
            grad = grad.reshape(-1, grad.shape[-1])
        if ctx.needs_input_grad[1]:
            left = left_codes.reshape(-1, left_codes.shape[-1]) if ctx.is_linear else left_codes
            of_right = _product(grad.mT, left, ctx.factors[1]).to(ctx.dtypes[1])
            of_right = inside_clip(of_right, latents[1], ctx.clips[1])
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum(0)
        return of_left, of_right, of_bias, None, None, None


def _number(scale: torch.Tensor) -> float | torch.Tensor:
    """A scale as what numbers can be multiplied with; to look at it would stall the queue of a GPU."""
    return scale.item() if scale.is_cpu else scale.view(1)


def _product(
    left: torch.Tensor, right: torch.Tensor, factor: float | torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Factor * left @ right + bias: (..., n, k) and (k, m), or (..., k, m), to (..., n, m).

    A factor in a tensor, (1), is applied in its own float32; without dimensions a GPU would round it to bfloat16.
    """
    if isinstance(factor, torch.Tensor):
        product = torch.matmul(left, right) * factor
        return (product if bias is None else product.add_(bias)).to(left.dtype)
    # No view of something else, or autograd would let nobody change the result in place.
    result = left.new_empty(*left.shape[:-1], right.shape[-1])
    if right.ndim == 2:
        rows, products = left.reshape(-1, left.shape[-1]), result.view(-1, result.shape[-1])
        if bias is None:
            products.addmm_(rows, right, beta=0, alpha=factor)
        else:
            torch.addmm(bias.to(left.dtype), rows, right, alpha=factor, out=products)
    else:
        result.flatten(0, -3).baddbmm_(left.flatten(0, -3), right.flatten(0, -3), beta=0, alpha=factor)
    return result
