"""`Quantizer`: what every quantizer can do, given its own way to find codes.

A quantizer of this folder says how values become codes (`_encode`) and codes become values again (`_decode`); the rest
follows. Nothing here makes a boolean tensor: on CPUs comparisons and masks are several times slower than arithmetic.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from .granularity import Granularity
from .ste import straight_through

Peak = torch.Tensor | None

# Small enough never to change a real scale, large enough that a gradient times two of them is not lost in float32.
_SMALLEST_SCALE = 1e-15


class Quantizer(ABC):
    """Float values to codes and back.

    Attributes:
        bits: width of a code.
        granularity: the values that share a scale.
        clip: values are clipped to plus or minus this; the gradient passes inside.
        weight_bits, activation_bits: widths for which it serves weights and activations.
        has_offset: whether values are scale * codes + offset instead of scale * codes.
    """

    weight_bits: ClassVar[tuple[int, ...]] = ()
    activation_bits: ClassVar[tuple[int, ...]] = ()
    has_offset: ClassVar[bool] = False

    bits: int
    granularity: Granularity
    clip: float

    @abstractmethod
    def _encode(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Peak]:
        """Integer-valued codes in a new tensor of float32 or wider, and what `_decode` needs: here the scale.

        Then the largest magnitudes of the values, or None where they would cost more than they save.
        """

    def _decode(self, codes: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
        """The values that codes stand for, written over the codes."""
        return codes.mul_(unit)

    def _scale(self, unit: torch.Tensor) -> torch.Tensor:
        """The scale, broadcastable against the codes."""
        return unit

    def _stored_scale(self, unit: torch.Tensor) -> torch.Tensor:
        """The scale, broadcastable against the codes, in a precision from which `_unit` finds the way back."""
        return unit.float()

    def _unit(self, stored_scale: torch.Tensor) -> torch.Tensor:
        """The inverse of `_stored_scale`, to the last bit."""
        return stored_scale

    def quantize(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Float values, any shape, to int8 codes of that shape and their broadcastable scale."""
        codes, unit, _ = self._encode(values.detach())
        return codes.to(torch.int8), self._scale(unit)

    def dequantize(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Codes and scale back to float: scale * codes (the last bit may differ from calling the quantizer)."""
        return codes.to(scale.dtype) * scale

    def fake(self, values: torch.Tensor) -> tuple[torch.Tensor, Peak]:
        """`fake_quantize` without a gradient: the quantized values, and the largest magnitudes of the given ones."""
        codes, unit, peak = self._encode(values.detach())
        return self._decode(codes, unit).to(values.dtype), peak

    def store(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Float values, any shape, to int8 codes of that shape and the scale as a packed checkpoint keeps it."""
        codes, unit, _ = self._encode(values.detach())
        return codes.to(torch.int8), self._stored_scale(unit)

    def restore(self, codes: torch.Tensor, stored_scale: torch.Tensor) -> torch.Tensor:
        """What `fake` makes of the values that `store` was given, from the codes it returned; equal bit for bit."""
        unit = self._unit(stored_scale)
        return self._decode(codes.to(unit.dtype), unit)

    def restore_integers(
        self, codes: torch.Tensor, stored_scale: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `integers` makes of the values that `store` was given: codes in `dtype` and their positive scale."""
        return codes.to(dtype), self._scale(self._unit(stored_scale)).clamp(min=_SMALLEST_SCALE)

    def integers(self, values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, Peak]:
        """Codes as numbers of a float `dtype`, their scale, and the largest magnitudes of the given values.

        All without a gradient. bfloat16 holds codes of up to 8 bits exactly, so products of such codes lose nothing
        that a product of dequantized values in bfloat16 would lose. The scale of zeros is positive too, so that one may
        divide by it.
        """
        codes, unit, peak = self._encode(values.detach())
        return codes.to(dtype), self._scale(unit).clamp(min=_SMALLEST_SCALE), peak

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """`fake_quantize`: float of any shape to float, with the straight-through gradient."""
        quantized, peak = self.fake(values)
        return straight_through(values, quantized, self.clip, peak)

    @property
    def codes(self) -> range:
        """Every code there is.

        Symmetric around 0 unless a quantizer says otherwise; only odd ones where 0 is none.
        """
        return range(1 - 2 ** (self.bits - 1), 2 ** (self.bits - 1))

    @property
    def largest_code(self) -> int:
        """The largest magnitude of a code: 1 for ternary ones, 127 for 8 bits."""
        return max(-self.codes[0], self.codes[-1])

    @property
    def code_bits(self) -> int:
        """Bits that tell the codes apart: `bits`, but for a quantizer with more levels than its name says."""
        return (len(self.codes) - 1).bit_length()

    @property
    def packable(self) -> bool:
        """Whether a weight is scale * codes with codes of `bits` bits; others are there for comparison only."""
        return bool(self.weight_bits) and not self.has_offset and self.code_bits <= self.bits

    def frozen(self) -> "Quantizer":
        """What still describes the codes once the weight is packed: nothing of it learns any more."""
        return self
