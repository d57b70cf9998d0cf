"""The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432), clipped as in TernaryBERT.

One autograd function serves every quantizer: the forward pass returns the quantized values, the backward pass pretends
that quantization was the identity inside the clip and a constant outside. Where it is known that nothing was clipped
nothing is kept and the gradient passes as it is; else the latent values are kept, as a loss or a residual often does
anyway. The backward pass is itself made of differentiable operations, so Hessian-vector products go through it.
"""

import math

import torch

from ..errors import TrituneError


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, latent: torch.Tensor, quantized: torch.Tensor, clip: float | None, scale: torch.Tensor | None
    ) -> torch.Tensor:
        """`quantized` as it is."""
        ctx.clip, ctx.dtype = clip, latent.dtype
        ctx.save_for_backward(None if clip is None else latent, scale)
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """`grad` (over `scale`) where |latent| < clip."""
        latent, scale = ctx.saved_tensors
        # Without dimensions a scale keeps its float32 beside bfloat16 on a CPU; a GPU would round it.
        if scale is not None and scale.numel() == 1 and scale.is_cpu and grad.dtype == ctx.dtype:
            grad = grad * (1 / scale).view(())
        elif scale is not None:
            # On CPUs operands of two dtypes are many times slower than a conversion.
            grad = grad.to(scale.dtype, copy=True).div_(scale)
        return inside_clip(grad.to(ctx.dtype), latent, ctx.clip), None, None, None


def inside_clip(grad: torch.Tensor, latent: torch.Tensor | None, clip: float | None) -> torch.Tensor:
    """`grad` where |latent| < clip and zero elsewhere, of one shape and dtype; all of it where either is None."""
    if latent is None or clip is None:
        return grad
    return torch.ops.aten.hardtanh_backward(grad, latent, -clip, clip)


def straight_through(
    latent: torch.Tensor,
    quantized: torch.Tensor,
    clip: float,
    peak: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return `quantized`, with the gradient of `latent` where |latent| < clip and zero elsewhere.

    Args:
        latent: float values, any shape.
        quantized: what the forward pass uses instead, same shape; it receives no gradient.
        clip: the half-width of the range that quantization can represent.
        peak: largest magnitudes of `latent`, if they are known: they tell whether anything was clipped.
        scale: of `quantized`, if that is codes rather than values: the values' gradient is then the codes' over it.

    >>> weight = torch.tensor([-3.0, 0.2], requires_grad=True)
    >>> straight_through(weight, torch.tensor([-2.5, 0.0]), clip=2.5).sum().backward()
    >>> weight.grad
    tensor([0., 1.])
    """
    if not (torch.is_grad_enabled() and latent.requires_grad):
        return quantized.detach()
    if torch.jit.is_tracing():  # its check compares with a trace without gradients
        raise TrituneError(
            "torch.jit.trace cannot trace a QAT model with gradients; trace it under torch.no_grad(), or use "
            "`tritune export` (ONNX) or torch.export"
        )
    inside = surely_inside(peak, clip)
    return _StraightThrough.apply(latent, quantized.detach(), None if inside else clip, scale)


def pass_through(latent: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """Return `quantized`, with the gradient of `latent`: rounding taken for the identity.

    Args:
        latent: float values, any shape.
        quantized: same shape; it receives no gradient.

    >>> value = torch.tensor(0.7, requires_grad=True)
    >>> pass_through(3 * value, torch.tensor(2.0)).backward()
    >>> value.grad
    tensor(3.)
    """
    return _StraightThrough.apply(latent, quantized.detach(), None, None)


def floored(parameter: torch.Tensor, floor: float, gradient_scale: float = 1.0) -> torch.Tensor:
    """A learned scale, kept positive; below the floor, too, it gets its gradient and so finds its way back.

    Args:
        parameter: any shape.
        floor: the smallest value returned.
        gradient_scale: the gradient is multiplied by it, as LSQ does.

    >>> step = torch.tensor(-1.0, requires_grad=True)
    >>> floored(step, 0.5, gradient_scale=0.25).backward()
    >>> step.grad
    tensor(0.2500)
    """
    value = parameter.detach()
    return (parameter - value) * gradient_scale + value.clamp(min=floor)


def surely_inside(peak: torch.Tensor | None, clip: float) -> bool:
    """Whether it is known that nothing needs to be clipped.

    False where a look at a value would stall a device's queue, or break a graph that is being traced.

    Args:
        peak: largest magnitudes, any shape; None when they are not known.
        clip: the half-width of the range; infinite where nothing is clipped.

    >>> surely_inside(torch.tensor([0.3, 2.5]), clip=2.5)
    False
    """
    if clip == math.inf:
        return True
    if peak is None or not peak.is_cpu or torch.compiler.is_compiling():
        return False
    return (peak if peak.numel() == 1 else peak.amax()).item() < clip
