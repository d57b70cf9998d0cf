"""Quantizers that remember: a range that follows the batches, or a scale that is learned.

They are modules, so that what they remember is saved, moved and trained with the model. It starts from values: of a
weight when the model is prepared, of an activation from one sample batch, also when the model is prepared. Rejected:
starting at the first training batch, which needs a flag that survives saving, and another number on every device.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from torch import nn

from .granularity import Granularity
from .own_graph import CodesWithGradient, OwnGraph
from .quantizer import Peak, Quantizer
from .ste import floored

# Far below the scale of any weight or activation; a scale that shrinks to it grows again.
_SMALLEST_LEARNED = 1e-8


class Calibrated(OwnGraph, nn.Module):
    """A quantizer with a state that starts from values.

    Attributes:
        calibrating: while true, every call widens the state by the values it sees.
    """

    def __init__(self, bits: int, granularity: Granularity):
        super().__init__()
        self.bits, self.granularity, self.calibrating = bits, granularity, False

    @abstractmethod
    def reset(self) -> None:
        """Forget everything, as before the first `calibrate`."""

    @abstractmethod
    def calibrate(self, values: torch.Tensor) -> None:
        """Widen the state so that it serves `values` too."""

    def extra_repr(self) -> str:
        """Bits and granularity."""
        return f"bits={self.bits}, granularity={self.granularity}"


class Learned(Calibrated, CodesWithGradient):
    """A quantizer with one learned number per scale.

    Args:
        bits: width of a code.
        granularity: the values that share a scale, `TENSOR` or `ROW`.
        groups: shape of the learned number: (rows, 1) for the rows of a matrix, () for all of a tensor.
        sharing: how many values share it, for the gradient scale: those of the weight or of its row; of an activation
            the features of one token, so that the batch and its padding change nothing.
    """

    # The name of the parameter, "scale" or "clip".
    learns: str

    def __init__(
        self,
        bits: int,
        granularity: Granularity = Granularity.TENSOR,
        groups: tuple[int, ...] = (),
        sharing: int = 1,
    ):
        super().__init__(bits, granularity)
        self.sharing = sharing
        self.register_parameter(self.learns, nn.Parameter(torch.ones(groups)))

    @abstractmethod
    def _graph(self, values: torch.Tensor, rows: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and scale with their gradient; `rows` are those of a weight that `values` are, None all of them."""

    @abstractmethod
    def _start(self, values: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
        """The start of the learned number for `values`, a statistic over `dims`, which are kept."""

    def gathered(self, values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The call on some rows of a weight.

        Args:
            values: (..., columns), the rows.
            rows: (...), their indices.
        """
        codes, scale = self._graph(values, rows)
        return (codes * scale).to(values.dtype)

    @torch.no_grad()
    def reset(self) -> None:
        """Set every learned number to 0."""
        for parameter in self.parameters():
            parameter.zero_()

    @torch.no_grad()
    def calibrate(self, values: torch.Tensor) -> None:
        """Take the published start, or keep what is larger."""
        parameter = getattr(self, self.learns)
        start = self._start(values.to(parameter.dtype), self.granularity.dims(values))
        parameter.copy_(torch.maximum(parameter, start.view(parameter.shape)))

    def frozen(self) -> Quantizer:
        """The codes alone."""
        return StoredCodes(self.bits, self.granularity, self.codes)

    @property
    def gradient_scale(self) -> float:
        """LSQ's: 1/sqrt(values that share the number * largest positive code of as many bits)."""
        return 1 / math.sqrt(self.sharing * max(2 ** (self.bits - 1) - 1, 1))

    def _broadcast(self, parameter: torch.Tensor, values: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        if parameter.ndim == 0:
            return parameter.view([1] * values.ndim)
        return parameter if rows is None else parameter[rows]

    def _positive(self, values: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """The learned number, positive, against `values`; while calibrating it is widened by them first."""
        if self.calibrating:
            self.calibrate(values.detach())
        parameter = self._broadcast(getattr(self, self.learns), values, rows)
        return floored(parameter, _SMALLEST_LEARNED, self.gradient_scale)


@dataclass(frozen=True)
class StoredCodes(Quantizer):
    """The codes of a packed weight whose scale was learned: they can be read, but nothing can be quantized with them.

    Attributes:
        bits, granularity, every: of the quantizer that wrote them; `every` are its `codes`.
    """

    bits: int
    granularity: Granularity
    every: range = field(repr=False)
    clip = math.inf
    weight_bits = tuple(range(1, 9))
    codes = property(lambda self: self.every, doc="Every code there is.")

    def _encode(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Peak]:
        raise TypeError("a packed weight cannot be quantized again")
