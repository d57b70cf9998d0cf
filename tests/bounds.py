"""How far apart two results may be that are the same numbers, added up in another order.

Bits are equal only where the same operations run in the same order on the same shapes: a matrix product may sum in
another order for another processor, another number of rows or threads. Everything else is compared within `rounding`.
"""

import torch


def rounding(expected: torch.Tensor, terms: int) -> dict[str, float]:
    """`rtol` and `atol` for `torch.testing.assert_close`: what sums of `terms` numbers may differ by.

    The error of a sum of n numbers is at most n - 1 roundings of its largest partial sum (Higham, *Accuracy and
    Stability of Numerical Algorithms*, section 4.2); twice that for two sums. The size is the largest value's.

    Args:
        expected: what the result is compared with; its dtype is that of the sums.
        terms: how many numbers were added up, one after another, for a value: of several products, their sum.
    """
    size = max(expected.abs().max().item(), 1.0)
    return {"rtol": 0.0, "atol": 2 * terms * torch.finfo(expected.dtype).eps * size}
