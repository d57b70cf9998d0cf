"""The process among its peers, which device is its own, and how it holds its memory."""

import ctypes
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState

# mallopt's names in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST_TRIM = 2**31 - 1


def this_process() -> "PartialState":
    """Join the processes of torchrun or accelerate launch, over gloo where there is no accelerator."""
    # Every command line asks for the memory below, and only some of them for torch.
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


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
