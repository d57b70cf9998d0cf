"""Kernels of the native library that stand in for the plain path of quantizers, and when they do.

They make codes in bfloat16, with one scale per tensor, on a CPU.
float32 is left to the plain path, which is the published arithmetic bit for bit.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from ctypes import CDLL, c_void_p, cast
from functools import cache

import torch

from ..engine.binding import library, why_not
from ..errors import TrituneError
from ..quant import Granularity, Quantizer, Ternary, Uniform
from ..quant.quantizer import Peak

# Of each quantizer the function of the library, and its own number that the function takes beside the clip. The types
# are exact: a subclass has another way to find codes.
_KERNELS = {
    Uniform: ("tritune_uniform", lambda own: own.largest_code),
    Ternary: ("tritune_ternary", lambda own: own.threshold_factor),
}
_DTYPES = (torch.float32, torch.bfloat16)
_TYPES = (torch.Tensor, torch.nn.Parameter)  # others, such as FakeTensor, need not have their values at an address

_in_use: ContextVar[bool] = ContextVar("in_use", default=False)


def has_kernel(kind: type[Quantizer]) -> bool:
    """Whether quantizers of exactly this class have one, for a scale per tensor."""
    return kind in _KERNELS


def load_kernels() -> None:
    """Load the library that they are in.

    Raises:
        TrituneError: tritune was installed without it; the message says why.
    """
    if reason := why_not():
        raise TrituneError(f"fused kernels: {reason}")


@cache
def kernels_available() -> bool:
    """Whether they can be loaded; where they could have been compiled, a warning says once why not."""
    if (reason := why_not()) and sys.platform != "win32":
        warnings.warn(
            f"fused kernels: {reason}; training goes on without them, somewhat slower; fused_kernels: false is silent",
            stacklevel=2,
        )
    return reason is None


@contextmanager
def fused_kernels() -> Iterator[None]:
    """Within the context `integers` takes the kernels.

    Raises:
        TrituneError: there are none, see `load_kernels`.
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
        and type(values) in _TYPES
        and values.dtype in _DTYPES
        and values.is_cpu
        and values.numel()
        and not torch.compiler.is_compiling()
    ):
        return quantizer.integers(values, dtype)
    return _by_kernel(quantizer, values.detach())


def _by_kernel(quantizer: Quantizer, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    name, number = _KERNELS[type(quantizer)]
    codes = torch.empty_like(values, dtype=torch.bfloat16)
    if codes.stride() != values.stride():
        values = values.clone()  # had gaps or repeats; now its values lie as the codes will
    scale, peak = (values.new_empty([1] * values.ndim, dtype=torch.float32) for _ in range(2))
    failed = getattr(library(), name)(
        values.data_ptr(),
        values.dtype is torch.bfloat16,
        values.numel(),
        quantizer.clip,
        number(quantizer),
        _team(),
        torch.get_num_threads(),
        *(result.data_ptr() for result in (codes, scale, peak)),
    )
    if failed:
        raise MemoryError(f"no memory for the codes of {values.numel()} values")
    return codes, scale, peak


@cache
def _team() -> int | None:
    """The address of what shares out torch's own work to its threads; None where torch has another way."""
    found = getattr(CDLL(None), "GOMP_parallel", None)
    return cast(found, c_void_p).value if found is not None else None
