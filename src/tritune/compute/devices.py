"""The process among its peers, which device is its own and what that is good at, and how it holds its memory."""

import ctypes
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

# mallopt's names in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST_TRIM = 2**31 - 1

# What processors call instructions that multiply bfloat16 (x86, x86, Arm); those that only convert it gain nothing.
_BF16_PRODUCTS = ("amx_bf16", "avx512_bf16", "bf16")


def this_process() -> "PartialState":
    """Join the processes of torchrun or accelerate launch, over gloo where there is no accelerator."""
    # Every command line asks for the memory below, and only some of them for torch.
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def multiplies_bf16(device: "torch.device") -> bool:
    """Whether a device has instructions of its own for products in bfloat16, and torch uses them.

    With them products are about twice as fast as in float32 or more, without them two to ten times slower. It is asked
    of torch and not measured: beside another job, a measurement of milliseconds finds now one precision faster and now
    the other, and two runs of one command must not differ by that. Devices other than CPUs and CUDA's count as having
    none.

    Args:
        device: of this process.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    able = torch.cpu.get_capabilities()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and any(able.get(name, False) for name in _BF16_PRODUCTS)


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next step instead of giving it back to the kernel; elsewhere do nothing.

    A training step on a CPU frees and asks for hundreds of tensors of a few MB. By default each of them comes fresh
    from the kernel, page by page, which takes several times longer than the arithmetic done on it.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_TRIM)
        # Blocks of their own mappings go back to the kernel when they are freed: no such blocks, however large.
        mallopt(_M_MMAP_MAX, 0)
