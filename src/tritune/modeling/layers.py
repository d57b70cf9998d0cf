"""`QuantLinear`, `QuantEmbedding`, `QuantConv2d` and `RowLinear`: thin twins of their float classes.

They hold the same parameters under the same names and quantize on the fly, so a state dict fits both ways and an
optimizer updates the latent weights. A quantizer that is None is off.
"""

from copy import copy
from typing import Self, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from ..compute import products
from ..quant import Granularity, Learned, Quantizer

_Twin = TypeVar("_Twin", bound=nn.Module)


def twin_of(module: nn.Module, kind: type[_Twin]) -> _Twin:
    """A module of another `kind` that shares the parameters, buffers, hooks and mode of `module`.

    What either is given later is its own: a quantizer that learns is a child of the twin, not of the float module.
    """
    twin = kind.__new__(kind)
    vars(twin).update(vars(module))
    for own in ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
        vars(twin)[own] = copy(vars(module)[own])
    return twin


class Quantized(nn.Module):
    """What all twins with a quantized weight share, packed ones too.

    Attributes:
        weight_quantizer, input_quantizer: None is off; an embedding's input are ids, which have none.
    """

    weight: torch.Tensor
    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None

    def extra_repr(self) -> str:
        """As the float class, with the quantizers."""
        return f"{super().extra_repr()}, weight={self.weight_quantizer}, input={self.input_quantizer}"


class FakeQuantized(Quantized):
    """What the twins of a QAT model share: a latent weight, quantized on the fly."""

    @classmethod
    def from_float(
        cls, module: nn.Module, weight_quantizer: Quantizer | None, input_quantizer: Quantizer | None = None
    ) -> Self:
        """A twin that shares the parameters, hooks and mode of a float `module`."""
        twin = twin_of(module, cls)
        twin.weight_quantizer, twin.input_quantizer = weight_quantizer, input_quantizer
        return twin

    @property
    def quantized_weight(self) -> torch.Tensor:
        """What the input is multiplied by or looked up in, shaped like the weight, without a gradient."""
        weight = self.weight.detach()
        if self.weight_quantizer is None:
            return weight
        return self.weight_quantizer.fake(weight.flatten(1))[0].view(weight.shape)


class QuantLinear(FakeQuantized, nn.Linear):
    """`nn.Linear` with a quantized weight and a quantized input."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        return products.linear(input, self.weight, self.bias, self.input_quantizer, self.weight_quantizer)


class RowLinear(nn.Linear):
    """`nn.Linear` that in evaluation takes one row of the batch after the other.

    The last bits of a float matrix product depend on how many rows it has; those of a product with one row do not, so
    this is what a float classifier needs for answers that do not depend on the size of their batch.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(batch, ..., in_features) to (batch, ..., out_features)."""
        # Exported, the batch is of no fixed size, and the order of sums is another runtime's affair.
        if self.training or input.ndim < 2 or torch.compiler.is_compiling():
            return super().forward(input)
        # Copies: where a row or the weights lie in memory may decide how they are added up, too.
        weight = self.weight.clone()
        return torch.cat([F.linear(row.clone(), weight, self.bias) for row in input.split(1)])


class QuantEmbedding(FakeQuantized, nn.Embedding):
    """`nn.Embedding` with a quantized table.

    With a scale per row the rows are gathered before they are quantized: the same numbers, and the work is
    proportional to the batch instead of the vocabulary.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Token ids of any shape to (..., embedding_dim)."""
        if self.weight_quantizer is None:
            return super().forward(input)
        if self.weight_quantizer.granularity is Granularity.ROW:
            rows = super().forward(input)
            if isinstance(self.weight_quantizer, Learned):
                return self.weight_quantizer.gathered(rows, input)
            return self.weight_quantizer(rows)
        return F.embedding(input, self.weight_quantizer(self.weight), self.padding_idx)


def is_patch_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution over patches that neither overlap nor are padded: a Linear of each patch."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == module.stride
        and module.dilation == (1, 1)
        and module.padding == (0, 0)
        and module.groups == 1
    )


def patches(images: torch.Tensor, kernel: tuple[int, ...]) -> torch.Tensor:
    """Images, (batch, channels, height, width), cut into patches: (batch, rows, columns, channels * kernel area).

    What is left at the right and lower edge is dropped, as a convolution does.

    >>> patches(torch.arange(6.0).view(1, 1, 2, 3), (2, 1)).tolist()
    [[[[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]]]
    """
    batch, channels, height, width = images.shape
    down, across = kernel
    rows, columns = height // down, width // across
    cut = images[..., : rows * down, : columns * across].reshape(batch, channels, rows, down, columns, across)
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3)


class QuantConv2d(FakeQuantized, nn.Conv2d):
    """`nn.Conv2d` over patches (see `is_patch_convolution`) with a quantized weight and quantized patches.

    It is computed as the `QuantLinear` that it is: a scale per token is one per patch, a scale per row one per output
    channel.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) to (batch, out channels, rows, columns)."""
        if self.weight_quantizer is None and self.input_quantizer is None:
            return super().forward(input)
        rows, weight = patches(input, self.kernel_size), self.weight.flatten(1)
        return products.linear(rows, weight, self.bias, self.input_quantizer, self.weight_quantizer).permute(0, 3, 1, 2)
