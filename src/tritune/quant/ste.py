"""The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432), clipped as in TernaryBERT.

One autograd function serves every quantizer: the forward pass returns the quantized values, the backward pass pretends
that quantization was the identity inside the clip and a constant outside. Only a mask of one byte per value is kept,
and the backward pass is itself made of differentiable operations, so Hessian-vector products go through it.
"""

import torch


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, latent: torch.Tensor, quantized: torch.Tensor, clip: float) -> torch.Tensor:
        """`quantized` as it is."""
        ctx.save_for_backward(latent.abs() < clip)
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """`grad` where |latent| < clip."""
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None


def straight_through(latent: torch.Tensor, quantized: torch.Tensor, clip: float) -> torch.Tensor:
    """Return `quantized`, with the gradient of `latent` where |latent| < clip and zero elsewhere.

    Args:
        latent: float values, any shape.
        quantized: what the forward pass uses instead, same shape; it receives no gradient.
        clip: the half-width of the range that quantization can represent.

    >>> weight = torch.tensor([-3.0, 0.2], requires_grad=True)
    >>> straight_through(weight, torch.tensor([-2.5, 0.0]), clip=2.5).sum().backward()
    >>> weight.grad
    tensor([0., 1.])
    """
    return _StraightThrough.apply(latent, quantized.detach(), clip)
