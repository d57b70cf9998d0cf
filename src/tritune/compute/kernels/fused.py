"""Which quantizers have a kernel, and when it stands in for them.

The kernels make codes in bfloat16, with one scale per tensor, on a CPU.
float32 is left to the plain path, which is the published arithmetic bit for bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from ...quant import Granularity, Quantizer, Ternary, Uniform
from ...quant.quantizer import Peak
from .build import load_kernels

# Exact types: a subclass has another way to find codes.
_KERNELS = {
    Uniform: lambda own, values: torch.ops.tritune_kernels.uniform(values, own.clip, own.largest_code),
    Ternary: lambda own, values: torch.ops.tritune_kernels.ternary(values, own.clip, own.threshold_factor),
}
_DTYPES = (torch.float32, torch.bfloat16)

_in_use: ContextVar[bool] = ContextVar("in_use", default=False)


def has_kernel(kind: type[Quantizer]) -> bool:
    """Whether quantizers of exactly this class have one, for a scale per tensor."""
    return kind in _KERNELS


@contextmanager
def fused_kernels() -> Iterator[None]:
    """Within the context `integers` takes the kernels; they are compiled if that has not been done yet.

    Raises:
        TrituneError: they cannot be compiled here, see `load_kernels`.
    """
    load_kernels()
    token = _in_use.set(True)
    try:
        yield
    finally:
        _in_use.reset(token)


def integers(quantizer: Quantizer, values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, Peak]:
    """`Quantizer.integers`, by a kernel where there is one and it is in use.

    `Uniform`'s codes, scale and largest magnitude are those of the plain path, bit for bit. `Ternary` adds up
    magnitudes in another order, so threshold and scale may differ by a millionth of their value.
    """
    if not (
        _in_use.get()
        and type(quantizer) in _KERNELS
        and quantizer.granularity is Granularity.TENSOR
        and dtype is torch.bfloat16
        and values.dtype in _DTYPES
        and values.is_cpu
        and values.numel()
        and not torch.compiler.is_compiling()
    ):
        return quantizer.integers(values, dtype)
    return _KERNELS[type(quantizer)](quantizer, values.detach())
