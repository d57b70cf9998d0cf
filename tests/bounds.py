"""How far two results may lie apart that would be the same if nothing were rounded.

Equal bits are asked for only where the same operations run in the same order on the same shapes; everything else is
held to what the precision gives. Two things differ from processor to processor: the order of a sum, bounded by
`rounding`, and the code on which a value at a rounding tie falls, which moves one entry by `ONE_CODE`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from unittest import mock

import torch

from tritune.quant import Uniform

# One of 8 bits, of the largest magnitude that shares its scale.
ONE_CODE = 1 / 127


def rounding(dtype: torch.dtype, terms: int, magnitude: float | torch.Tensor = 1.0) -> float | torch.Tensor:
    """The largest difference of two sums of the same products in different orders.

    Either is off by at most n * u * sum(|x y|) with u = eps / 2 (Higham, Accuracy and Stability of Numerical
    Algorithms, section 3.1). Through layers that follow each other, n counts what is summed one after the other.

    Args:
        dtype: of the sums.
        terms: n.
        magnitude: the sum of the magnitudes of what is added, or a bound of it.
    """
    return terms * torch.finfo(dtype).eps * magnitude


def assert_close_but_for_ties(
    found: torch.Tensor, expected: torch.Tensor, atol: float, share: float, code: float, name: str = ""
) -> int:
    """All entries lie within `atol`, but for a `share` of them behind a tie, which lie within `code`; their number."""
    off = (found - expected).abs()
    strays = int((off > atol).sum())
    assert strays <= share * off.numel(), f"{name}: {strays} of {off.numel()} entries are off by more than {atol:.0e}"
    assert off.max() <= max(code, atol), f"{name}: one entry is off by {off.max():.1e}, more than {code:.1e}"
    return strays


@contextmanager
def ties_by_lot(seed: int, width: float = 3e-5) -> Iterator[None]:
    """Within, a value nearer to a rounding tie than `width` of a code falls on either side, as on other processors.

    The default is what float32 gives: 127 codes, each value off by one or two last bits of 2^-23.
    """
    encode, generator = Uniform._encode, torch.Generator().manual_seed(seed)

    def by_lot(self: Uniform, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        _, codes_per_unit, peak = encode(self, values)
        lot = width * (2 * torch.rand(values.shape, generator=generator) - 1).to(values)
        codes = (values * codes_per_unit + lot).round_().clamp_(-self.largest_code, self.largest_code)
        return codes, codes_per_unit, peak

    with mock.patch.object(Uniform, "_encode", by_lot):
        yield


def clear_of_ties(run: Callable[[int], Any], distance: float = 1e-9) -> tuple[int, Any]:
    """The first seed, and the result of `run(seed)`, with no value nearer to a rounding tie than `distance` of a code.

    Contexts are whole multiples of two scales, so that some lie on a tie exactly, and the last bit of a scale decides:
    float64 alone does not make a comparison through quantizers safe. With data that keep clear of ties it is.
    """
    encode, seen = Uniform._encode, []

    def watched(self: Uniform, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        encoded = encode(self, values)
        places = (values.detach() * encoded[1].detach()).clamp(-self.largest_code, self.largest_code)
        seen.append((places - places.floor() - 0.5).abs().min().item())
        return encoded

    for seed in count():
        seen.clear()
        with mock.patch.object(Uniform, "_encode", watched):
            result = run(seed)
        if min(seen) > distance:
            return seed, result
