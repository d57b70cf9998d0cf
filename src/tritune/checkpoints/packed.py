"""`PackedLinear`, `PackedEmbedding` and `PackedConv2d`: twins of the quantized layers that hold packed codes.

The bytes lie under the float weight's own name, with their packed shape, so that no loader takes them for a float
weight; the scale lies beside them as `weight_scale`. They compute what their QAT twin computed, by the same operations,
and cannot be trained.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import nn

from ..compute import products
from ..errors import TrituneError
from ..modeling.layers import FakeQuantized, Quantized, patches, twin_of
from ..quant import Granularity, Quantizer
from ..quant.quantizer import Peak
from .gpu_linear import gpu_linear
from .packing import check_packed, pack, unpack


@dataclass(frozen=True, eq=False)
class Unpacker(Quantizer):
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
    # What `held.weights_held` holds is found again by the scale's state at that time, not by its values.
    _key: tuple = field(init=False, repr=False)

    bits = property(lambda self: self.quantizer.bits, doc="Width of a code.")
    granularity = property(lambda self: self.quantizer.granularity, doc="The codes that share a scale.")
    codes = property(lambda self: self.quantizer.codes, doc="Every code there is.")
    clip = math.inf  # bytes have no gradient that a clip could stop

    def __post_init__(self):
        version = None if self.scale.is_inference() else self.scale._version
        object.__setattr__(self, "_key", (self.quantizer, self.columns, self.dtype, id(self.scale), version))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unpacker) and self._key == other._key

    def fake(self, packed: torch.Tensor) -> tuple[torch.Tensor, Peak]:
        """Bytes, (rows, bytes of a row), to the values that they stand for, (rows, columns)."""
        return self.quantizer.restore(self._unpacked(packed), self.scale).to(self.dtype), None

    def integers(self, packed: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, Peak]:
        """Bytes, (rows, bytes of a row), to codes as numbers of `dtype`, (rows, columns), and their scale."""
        return *self.quantizer.restore_integers(self._unpacked(packed), self.scale, dtype), None

    def _unpacked(self, packed: torch.Tensor) -> torch.Tensor:
        return unpack(packed, self.bits, self.columns, self.codes)

    def _encode(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Peak]:
        raise TypeError("bytes are codes already")


class Packed(Quantized):
    """What all packed twins share: a `weight` of bytes and a `weight_scale`, neither of which has a gradient.

    Attributes:
        latent_shape: of the weight that was packed.
    """

    weight_quantizer: Quantizer
    weight_scale: torch.Tensor
    latent_shape: tuple[int, ...]
    # Empty; its dtype is that of the float rest, and follows it.
    _float: torch.Tensor
    # transformers' mark of what it need not initialize.
    _is_hf_initialized: bool

    @classmethod
    def from_quantized(cls, module: FakeQuantized) -> Self:
        """A twin with the hooks, mode and bias of a `module` whose weight has a quantizer.

        On the meta device it is the empty shape of one.
        """
        quantizer = module.weight_quantizer
        assert quantizer is not None, "a float weight is not packed"
        codes, scale = quantizer.store(module.weight.flatten(1))
        twin = twin_of(module, cls)
        twin._modules.pop("weight_quantizer", None)  # what it learned is now in codes and scale
        twin.weight_quantizer, twin.latent_shape = quantizer.frozen(), tuple(module.weight.shape)
        twin.weight = nn.Parameter(pack(codes, quantizer.bits, quantizer.codes), requires_grad=False)
        # A buffer, and the bytes no float: transformers takes a model's dtype from its float parameters.
        twin.register_buffer("weight_scale", scale)
        empty = torch.empty(0, dtype=module.weight.dtype, device=scale.device)
        twin.register_buffer("_float", empty, persistent=False)
        return twin

    @property
    def packed(self) -> torch.Tensor:
        """The bytes, uint8, (rows, bytes of a row)."""
        return self.weight

    @property
    def columns(self) -> int:
        """Codes of a row."""
        return math.prod(self.latent_shape[1:])

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

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:
        # `module.half()` is for the float rest: a scale of half precision would be another scale.
        scale = self.weight_scale
        super()._apply(fn, recurse)
        if self.weight_scale.dtype is not scale.dtype:
            self.weight_scale = scale.to(self.weight_scale.device)
        return self

    def _unpacker(self, dtype: torch.dtype, scale: torch.Tensor | None = None) -> Unpacker:
        if torch.jit.is_tracing():
            raise TrituneError("torch.jit.trace cannot trace a packed model; use `tritune export` or torch.export")
        return Unpacker(self.weight_quantizer, self.weight_scale if scale is None else scale, self.columns, dtype)


class PackedLinear(Packed, nn.Linear):
    """`QuantLinear` with a packed weight: uint8, (out_features, bytes of a row), and its `weight_scale`.

    Attributes:
        native: what computes some calls in the place of torch, to the same bits; see `engine.attach`.
    """

    native: Callable[["PackedLinear", torch.Tensor], torch.Tensor | None] | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        native = None if torch.compiler.is_compiling() else self.native
        if native is not None and (product := native(self, input)) is not None:
            return product
        if input.is_cuda and (product := self._on_gpu(input)) is not None:
            return product
        return products.linear(input, self.weight, self.bias, self.input_quantizer, self._unpacker(input.dtype))

    def _on_gpu(self, input: torch.Tensor) -> torch.Tensor | None:
        weight = self.packed, self.columns, self.weight_scale
        return gpu_linear(input, *weight, self.bias, self.input_quantizer, self.weight_quantizer)


class PackedEmbedding(Packed, nn.Embedding):
    """`QuantEmbedding` with a packed table: uint8, (rows, bytes of a row); only the rows asked for are unpacked."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Token ids of any shape to (..., embedding_dim)."""
        scale = self.weight_scale
        if self.weight_quantizer.granularity is Granularity.ROW:
            scale = scale[input]
        return self._unpacker(self._float.dtype, scale).fake(self.weight[input])[0]


class PackedConv2d(Packed, nn.Conv2d):
    """`QuantConv2d` with a packed weight: `weight_codes`, uint8, (out channels, bytes of a flat kernel), and its scale.

    Image models cast their pixels to the dtype of this very `weight`: therefore it is an empty float, not the bytes.
    """

    weight_codes: torch.Tensor

    @classmethod
    def from_quantized(cls, module: FakeQuantized) -> Self:
        """As `Packed.from_quantized`, with the bytes under another name."""
        twin = super().from_quantized(module)
        twin.register_buffer("weight_codes", twin.weight.data)
        twin.weight = nn.Parameter(module.weight.data.flatten(1)[:, :0].clone(), requires_grad=False)
        return twin

    @property
    def packed(self) -> torch.Tensor:
        """The bytes."""
        return self.weight_codes

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) to (batch, out channels, rows, columns)."""
        rows, unpacker = patches(input, self.kernel_size), self._unpacker(input.dtype)
        return products.linear(rows, self.packed, self.bias, self.input_quantizer, unpacker).permute(0, 3, 1, 2)
