"""Checksums of tensors in memory; `engine.integrity` says what they are for, and checks files without torch."""

import torch

from ..engine.integrity import checksum


def tensor_checksum(tensor: torch.Tensor) -> str:
    """Of dtype, shape and bytes.

    >>> tensor_checksum(torch.zeros(2)) == tensor_checksum(torch.zeros(2, 1))
    False
    """
    return checksum(str(tensor.dtype), tensor.shape, bytes_of(tensor))


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor of any shape, dtype and device, in the order of its elements."""
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data
