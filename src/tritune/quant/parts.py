"""One scale per part of a weight: for Linears that yield Q, K and V at once, as ModernBERT's `Wqkv` does.

Codes and values are those of separate weights. The scale of a part stands at each of its rows, so that everything else
sees a scale per row, packed files too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import TrituneError
from .calibrated import Calibrated, StoredCodes
from .granularity import Granularity
from .own_graph import CodesWithGradient, OwnGraph
from .quantizer import Quantizer


@dataclass(frozen=True)
class RowParts(Quantizer):
    """Quantizes blocks of rows, each as `whole` quantizes a tensor.

    Attributes:
        whole: with a scale per tensor.
        rows: of every part, in order.

    >>> from .ternary import Ternary
    >>> RowParts(Ternary(), (1, 1)).quantize(torch.tensor([[1.0, 0.1], [2.0, -2.0]]))[1].tolist()
    [[1.0], [2.0]]
    """

    whole: Quantizer
    rows: tuple[int, ...]
    granularity = Granularity.ROW
    bits = property(lambda self: self.whole.bits, doc="Width of a code.")
    clip = property(lambda self: self.whole.clip, doc="Of every part.")
    codes = property(lambda self: self.whole.codes, doc="Every code there is.")
    weight_bits = property(lambda self: self.whole.weight_bits, doc="Widths for which it serves weights.")

    def _encode(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        codes, units, peaks = zip(*map(self.whole._encode, values.split(self.rows)), strict=True)
        return torch.cat(codes), _at_rows(units, self.rows), None if peaks[0] is None else torch.stack(peaks)

    _decode = property(lambda self: self.whole._decode)
    _scale = property(lambda self: self.whole._scale)
    _stored_scale = property(lambda self: self.whole._stored_scale)
    _unit = property(lambda self: self.whole._unit)


class GraphRowParts(Calibrated, CodesWithGradient):
    """`RowParts` of quantizers that build their own graph, each with what it learns.

    Args:
        parts: one quantizer per part, with a scale per tensor.
        rows: of every part, in order.
    """

    def __init__(self, parts: Sequence[CodesWithGradient], rows: tuple[int, ...]):
        super().__init__(parts[0].bits, Granularity.ROW)
        self.quantizers, self.rows = tuple(parts), rows
        self.parts = nn.ModuleList(part for part in parts if isinstance(part, nn.Module))  # what of them is saved

    clip = property(lambda self: self.quantizers[0].clip, doc="Of every part.")
    codes = property(lambda self: self.quantizers[0].codes, doc="Every code there is.")
    weight_bits = property(lambda self: self.quantizers[0].weight_bits, doc="Widths for which it serves weights.")

    def reset(self) -> None:
        """Forget everything of every part."""
        for part in self.quantizers:
            if isinstance(part, Calibrated):
                part.reset()

    def calibrate(self, values: torch.Tensor) -> None:
        """Widen the state of every part so that it serves its rows of `values`, (rows, columns)."""
        for part, block in zip(self.quantizers, values.split(self.rows), strict=True):
            if isinstance(part, Calibrated):
                part.calibrate(block)

    def frozen(self) -> Quantizer:
        """The codes alone."""
        return StoredCodes(self.bits, self.granularity, self.codes)

    def _graph(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = zip(self.quantizers, values.split(self.rows), strict=True)
        codes, scales = zip(*(part._graph(block) for part, block in pairs), strict=True)
        return torch.cat(codes), _at_rows(scales, self.rows)


def in_parts(parts: Sequence[Quantizer], rows: tuple[int, ...]) -> Quantizer:
    """A quantizer of a weight whose blocks of so many rows have a scale each.

    Args:
        parts: one quantizer per block, all of one class, with a scale per tensor.
        rows: of every block.

    Raises:
        TrituneError: values of such quantizers have an offset.
    """
    graphs = [part for part in parts if isinstance(part, CodesWithGradient)]
    if graphs:
        return GraphRowParts(graphs, rows)
    if isinstance(parts[0], OwnGraph):
        raise TrituneError(
            f"weight_granularity: {type(parts[0]).__name__} needs row where Q, K and V come from one fused Linear"
        )
    return RowParts(parts[0], rows)


def _at_rows(units: Sequence[torch.Tensor], rows: tuple[int, ...]) -> torch.Tensor:
    """One number per part to one per row, (rows, 1)."""
    return torch.cat([unit.expand(count, 1) for unit, count in zip(units, rows, strict=True)])
