"""Kernels in C++ that stand in for the plain path of quantizers; compiled where they are first needed."""

from .build import kernels_available, load_kernels
from .fused import fused_kernels, has_kernel, integers

__all__ = ["fused_kernels", "has_kernel", "integers", "kernels_available", "load_kernels"]
