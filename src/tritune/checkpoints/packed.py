"""`PackedLinear`, `PackedEmbedding` and `PackedConv2d`: twins of the quantized layers that hold packed codes.

The bytes lie under the float weight's own name, with their packed shape, so that no loader takes them for a float
weight; the scale lies beside them as `weight_scale`. They compute what their QAT twin computed, by the same operations,
and cannot be trained.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ..compute import products
from ..errors import TrituneError
from ..modeling.layers import QuantConv2d, QuantEmbedding, QuantLinear, patches
from ..quant import Granularity, Quantizer
from .packing import check_packed, pack, unpack


@dataclass(frozen=True, eq=False)
class Unpacker:
    """What `quantizer` makes of a latent weight, made of the weight's bytes; it stands in the quantizer's place.

    Attributes:
        quantizer: of the weight when it was packed.
        scale: as `Quantizer.store` gave it.
        columns: codes of a row.
        dtype: of the values to make.
    """

    quantizer: Quantizer
    scale: torch.Tensor
    columns: int
    dtype: torch.dtype

    has_offset: ClassVar[bool] = False
    clip: ClassVar[float] = math.inf  # bytes have no gradient that a clip could stop

    @property
    def granularity(self) -> Granularity:
        """Of the quantizer."""
        return self.quantizer.granularity

    @property
    def largest_code(self) -> int:
        """Of the quantizer."""
        return self.quantizer.largest_code

    def fake(self, packed: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Bytes, (rows, bytes of a row), to the values that they stand for, (rows, columns)."""
        return self.quantizer.restore(self._codes(packed), self.scale).to(self.dtype), None

    def integers(self, packed: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Bytes, (rows, bytes of a row), to codes as numbers of `dtype`, (rows, columns), and their scale."""
        return *self.quantizer.restore_integers(self._codes(packed), self.scale, dtype), None

    def _codes(self, packed: torch.Tensor) -> torch.Tensor:
        return unpack(packed, self.quantizer.bits, self.columns, self.quantizer.codes)

    def __post_init__(self):
        # What `held.weights_held` holds is found again by the scale's state at that time, not by its values.
        version = None if self.scale.is_inference() else self.scale._version
        object.__setattr__(self, "_key", (self.quantizer, self.columns, self.dtype, id(self.scale), version))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unpacker) and self._key == other._key

    __hash__ = None


class _Packed:
    """What all twins share: a `weight` of bytes and a `weight_scale`, neither of which has a gradient."""

    weight: nn.Parameter
    weight_scale: torch.Tensor
    weight_quantizer: Quantizer

    @classmethod
    def _of(cls, module: nn.Module) -> nn.Module:
        """A twin with the hooks, mode and bias of a quantized `module`, whose own weight is packed."""
        quantizer = module.weight_quantizer
        codes, scale = quantizer.store(module.weight.flatten(1))
        twin = cls.__new__(cls)
        twin.__dict__.update(module.__dict__)
        twin._parameters = dict(module._parameters)
        # A quantizer that learns is a child of the QAT twin; what it learned is now in codes and scale.
        twin._modules = {name: child for name, child in module._modules.items() if child is not quantizer}
        twin.weight_quantizer = quantizer.frozen()
        twin.weight = nn.Parameter(pack(codes, quantizer.bits, quantizer.codes), requires_grad=False)
        # A buffer, and the bytes no float: transformers takes a model's dtype from its float parameters.
        twin._buffers = {**module._buffers, "weight_scale": scale}
        # Empty; its dtype is that of the float rest, and follows it.
        twin._buffers["_float"] = torch.empty(0, dtype=module.weight.dtype, device=scale.device)
        twin._non_persistent_buffers_set = module._non_persistent_buffers_set | {"_float"}
        return twin

    @property
    def packed(self) -> torch.Tensor:
        """The bytes, uint8, (rows, bytes of a row)."""
        return self.weight

    @property
    def columns(self) -> int:
        """Codes of a row."""
        return self.in_features if isinstance(self, nn.Linear) else self.embedding_dim

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of the weight that was packed."""
        return self.weight.shape[0], self.columns

    @property
    def codes(self) -> torch.Tensor:
        """The codes, int8, (rows, columns)."""
        return unpack(self.packed, self.weight_quantizer.bits, self.columns, self.weight_quantizer.codes)

    @property
    def quantized_weight(self) -> torch.Tensor:
        """What the QAT twin multiplied by or looked up in, in its shape and in the dtype of the float rest."""
        return self._unpacker(self._float.dtype).fake(self.packed)[0].view(self.latent_shape)

    def check(self, name: str) -> None:
        """Check that the bytes are codes of this width and that the scale is a scale.

        Raises:
            TrituneError: they are not; the message names the weight.
        """
        check_packed(self.packed, self.weight_quantizer.bits, self.columns, name, self.weight_quantizer.codes)
        if not (self.weight_scale.isfinite() & (self.weight_scale >= 0)).all():
            raise TrituneError(f"{name}: its scale must be finite and not negative; the file is damaged")

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        # `module.half()` is for the float rest: a scale of half precision would be another scale.
        scale = self.weight_scale
        super()._apply(fn, recurse)
        if self.weight_scale.dtype is not scale.dtype:
            self.weight_scale = scale.to(self.weight_scale.device)
        return self

    def _unpacker(self, dtype: torch.dtype, scale: torch.Tensor | None = None) -> Unpacker:
        if torch.jit.is_tracing():
            raise TrituneError("torch.jit.trace: not of a packed model; take `tritune export` (ONNX) or torch.export")
        return Unpacker(self.weight_quantizer, self.weight_scale if scale is None else scale, self.columns, dtype)


class PackedLinear(_Packed, nn.Linear):
    """`QuantLinear` with a packed weight: uint8, (out_features, bytes of a row), and its `weight_scale`."""

    input_quantizer: Quantizer | None

    @classmethod
    def from_quantized(cls, linear: QuantLinear) -> "PackedLinear":
        """A twin of a `QuantLinear` whose weight has a quantizer; on the meta device, the empty shape of one."""
        return cls._of(linear)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        return products.linear(input, self.weight, self.bias, self.input_quantizer, self._unpacker(input.dtype))

    def extra_repr(self) -> str:
        """As `nn.Linear`, with the quantizers."""
        return f"{super().extra_repr()}, weight={self.weight_quantizer}, input={self.input_quantizer}"


class PackedEmbedding(_Packed, nn.Embedding):
    """`QuantEmbedding` with a packed table: uint8, (rows, bytes of a row); only the rows asked for are unpacked."""

    @classmethod
    def from_quantized(cls, embedding: QuantEmbedding) -> "PackedEmbedding":
        """A twin of a `QuantEmbedding` whose table has a quantizer; on the meta device, the empty shape of one."""
        return cls._of(embedding)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Token ids of any shape to (..., embedding_dim)."""
        scale = self.weight_scale
        if self.weight_quantizer.granularity is Granularity.ROW:
            scale = scale[input]
        return self._unpacker(self._float.dtype, scale).fake(self.weight[input])[0]

    def extra_repr(self) -> str:
        """As `nn.Embedding`, with the quantizer."""
        return f"{super().extra_repr()}, weight={self.weight_quantizer}"


class PackedConv2d(_Packed, nn.Conv2d):
    """`QuantConv2d` with a packed weight: `weight_codes`, uint8, (out channels, bytes of a flat kernel), and its scale.

    Image models bring their pixels to the dtype of this very `weight`: therefore it is an empty float, not the bytes.
    """

    input_quantizer: Quantizer | None

    @classmethod
    def from_quantized(cls, convolution: QuantConv2d) -> "PackedConv2d":
        """A twin of a `QuantConv2d` whose weight has a quantizer; on the meta device, the empty shape of one."""
        twin = cls._of(convolution)
        twin._buffers["weight_codes"] = twin.weight.data
        twin.weight = nn.Parameter(convolution.weight.data.flatten(1)[:, :0].clone(), requires_grad=False)
        return twin

    @property
    def packed(self) -> torch.Tensor:
        """The bytes."""
        return self.weight_codes

    @property
    def columns(self) -> int:
        """Codes of a flat kernel."""
        return math.prod(self.latent_shape[1:])

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of the weight that was packed, (out channels, channels, kernel height, width)."""
        return self.out_channels, self.in_channels, *self.kernel_size

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) to (batch, out channels, rows, columns)."""
        rows, unpacker = patches(input, self.kernel_size), self._unpacker(input.dtype)
        return products.linear(rows, self.packed, self.bias, self.input_quantizer, unpacker).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """As `nn.Conv2d`, with the quantizers."""
        return f"{super().extra_repr()}, weight={self.weight_quantizer}, input={self.input_quantizer}"
