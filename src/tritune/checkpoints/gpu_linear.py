"""Which packed Linears a GPU multiplies by `compute.triton_product`, to the same bits as `compute.products.linear`.

Both multiply codes exactly and their sums by the scales in the same order. That holds in float32 where the input has a
scale per token; with one per tensor the published arithmetic multiplies floats.
"""

import warnings
from collections.abc import Callable
from functools import cache

import torch

from ..compute.held import quantized_input
from ..errors import first_line
from ..quant import Granularity, Quantizer, Uniform
from .packing import STORED_BITS, first_code

# Older GPUs have no matrix instruction that triton takes 8-bit codes to.
_OLDEST_CAPABILITY = (8, 0)


def gpu_linear(
    input: torch.Tensor,
    packed: torch.Tensor,
    columns: int,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    input_quantizer: Quantizer | None,
    weight_quantizer: Quantizer,
) -> torch.Tensor | None:
    """`products.linear` of a packed weight, or None where that must compute it.

    Args:
        input: (..., columns), on a GPU; or on the CPU, where triton interprets its kernels.
        packed: the weight, uint8, (out features, bytes of a row).
        columns: codes of a row.
        weight_scale: as `Quantizer.store` gave it.
        bias: (out features), or None.
        input_quantizer: None for float activations.
        weight_quantizer: of the weight when it was packed.

    Returns:
        (..., out features), or None.
    """
    tensors = [tensor for tensor in (input, packed, weight_scale, bias) if tensor is not None]
    if (
        not _are_plain(tensors)
        or input.shape[-1:] != (columns,)
        or STORED_BITS[weight_quantizer.bits] != 2
        # The exact type: a subclass has another way to find codes.
        or type(input_quantizer) is not Uniform
        or input_quantizer.granularity is not Granularity.TOKEN
        or (product := _product_on(input.device)) is None
    ):
        return None
    codes, scale, _ = quantized_input(input, input_quantizer, torch.int8)
    # Of no codes at all this gives the scale.
    none = codes.new_empty(len(packed), 0)
    weight_scale = weight_quantizer.restore_integers(none, weight_scale, torch.float32)[1]
    first, step = first_code(weight_quantizer.bits, weight_quantizer.codes), weight_quantizer.codes.step
    rows = codes.reshape(-1, columns)
    result = product(rows, scale, packed, weight_scale, bias, first=first, step=step)
    return result.view(*input.shape[:-1], len(packed))


def _are_plain(tensors: list[torch.Tensor]) -> bool:
    """Whether a call wants numbers alone, in float32, of an input and other tensors on its device."""
    input = tensors[0]
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.is_autocast_enabled(input.device.type)
        or type(input) is not torch.Tensor
        or input.dtype is not torch.float32
        or not input.numel()
        or any(tensor.device != input.device for tensor in tensors)
        or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
    )


@cache
def _product_on(device: torch.device) -> Callable[..., torch.Tensor] | None:
    """`packed_product` if it works on a device; where triton is there and fails, a warning says once why."""
    if device.type == "cuda" and (torch.version.hip or torch.cuda.get_device_capability(device) < _OLDEST_CAPABILITY):
        return None
    try:
        from ..compute.triton_product import packed_product
    except ImportError:
        return None
    one = torch.ones(1, 1, device=device)
    try:
        packed_product(one.to(torch.int8), one, one.to(torch.uint8), one, None, first=-1, step=1)
    except Exception as error:  # it needs a C compiler and a driver of its liking, and each fails in its own way
        warnings.warn(
            f"triton does not work on {device} ({first_line(error)}); torch multiplies packed weights there, slower",
            stacklevel=2,
        )
        return None
    return packed_product
