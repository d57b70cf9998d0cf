"""Which values share a scale."""

from enum import StrEnum

import torch


class Granularity(StrEnum):
    """The set of values that one scale serves.

    `ROW` is an output channel of a weight and `TOKEN` a token of an activation; both are vectors along the last
    dimension. `HEAD` is the matrix of one head of one sequence: the last two dimensions.
    """

    TENSOR = "tensor"
    ROW = "row"
    TOKEN = "token"
    HEAD = "head"

    def dims(self, tensor: torch.Tensor) -> tuple[int, ...]:
        """The dimensions over which a statistic of `tensor` is reduced.

        >>> Granularity.HEAD.dims(torch.zeros(2, 4, 7, 7))
        (-2, -1)
        """
        if self is Granularity.TENSOR:
            return tuple(range(tensor.ndim))
        return (-2, -1) if self is Granularity.HEAD else (-1,)


def wide_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype that statistics of `tensor` are taken in: its own, but never narrower than float32.

    >>> wide_dtype(torch.zeros(1, dtype=torch.bfloat16))
    torch.float32
    """
    return torch.promote_types(tensor.dtype, torch.float32)
