"""The modules and products that replace those of a QAT model for its export, built from `operators.py`."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ...checkpoints.packed import PackedConv2d, PackedLinear
from ...checkpoints.packing import pack
from ...compute import products
from ...errors import TrituneError
from ...modeling.instrument import instrument_of
from ...modeling.layers import QuantConv2d, QuantLinear, patches
from ...quant import Granularity, Quantizer, Uniform
from .codes import Codes, codes_of, signed
from .operators import ZERO_POINT, matmul_integer, quantize, unpack

# Twice the largest code of a signed right operand times 255 must fit in 16 bits.
_LARGEST_SIGNED = 63


class IntegerProducts:
    """The products inside attention; takes what `tritune.compute.products` takes.

    Where only one operand is quantized there is nothing to compute in integers, and the float product stays.
    """

    @staticmethod
    def scores(
        query: torch.Tensor,
        key: torch.Tensor,
        query_quantizer: Quantizer | None,
        key_quantizer: Quantizer | None,
        scaling: float,
    ) -> torch.Tensor:
        """Scaling * query @ key.T: (batch, heads, tokens, head width) twice to (batch, heads, query, key)."""
        if query_quantizer is None or key_quantizer is None:
            return products.scores(query, key, query_quantizer, key_quantizer, scaling)
        queries, query_scale = _codes(query, query_quantizer, ZERO_POINT)
        keys, key_scale = _codes(key, key_quantizer, ZERO_POINT)
        key_scale = key_scale.mT if key_scale.ndim else key_scale
        return matmul_integer(queries, query_scale * scaling, keys.mT, key_scale, ZERO_POINT, ZERO_POINT)

    @staticmethod
    def context(
        attention_probs: torch.Tensor,
        value: torch.Tensor,
        probs_quantizer: Quantizer | None,
        value_quantizer: Quantizer | None,
    ) -> torch.Tensor:
        """attention_probs @ value: (batch, heads, query, key) and (batch, heads, key, head width) to the context."""
        if probs_quantizer is None or value_quantizer is None:
            return products.context(attention_probs, value, probs_quantizer, value_quantizer)
        values, value_scale = _codes(value, value_quantizer, ZERO_POINT)
        if value_quantizer.granularity is Granularity.TOKEN:  # as in `tritune.compute.products`
            attention_probs, value_scale = attention_probs * value_scale.mT, torch.ones(())
        # Probabilities are never negative: their codes are unsigned as they are.
        probs, probs_scale = _codes(attention_probs, probs_quantizer, 0)
        return matmul_integer(probs, probs_scale, values, value_scale, 0, ZERO_POINT)


class IntegerLinear(nn.Module):
    """`QuantLinear` with the codes of its weight instead of the weight.

    Codes are (in features, out features), as MatMulInteger takes them, under a name that tells how they are stored.
    """

    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: Codes, bias: torch.Tensor | None, input_quantizer: Quantizer | None):
        super().__init__()
        self.input_quantizer = input_quantizer
        self.zero_point = 0 if max(-weight.every[0], weight.every[-1]) <= _LARGEST_SIGNED else ZERO_POINT
        codes = weight.codes.mT.contiguous()
        if self.zero_point:
            codes = (codes.to(torch.int16) + self.zero_point).to(torch.uint8)
        self.codes_name = f"{'odd_' if weight.are_odd else ''}codes_{weight.bits}"
        self.register_buffer(self.codes_name, codes)
        self.register_buffer("scale", weight.scale.flatten() if weight.scale.numel() > 1 else weight.scale.view(()))
        self.register_buffer("bias", bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features)."""
        codes = getattr(self, self.codes_name)
        if self.input_quantizer is None:
            product = input @ ((codes.float() - self.zero_point) * self.scale)
        else:
            values, scale = _codes(input, self.input_quantizer, ZERO_POINT)
            product = matmul_integer(values, scale, codes, self.scale, ZERO_POINT, self.zero_point)
        return product if self.bias is None else product + self.bias


class IntegerConv2d(IntegerLinear):
    """`QuantConv2d`: an `IntegerLinear` of every patch.

    Args:
        kernel: height and width of a patch.
        linear: what `IntegerLinear` takes.
    """

    def __init__(self, kernel: tuple[int, int], *linear: Any):
        super().__init__(*linear)
        self.kernel = kernel

    @property
    def weight(self) -> torch.Tensor:
        """Something of the dtype that image models bring their pixels to; they ask for that of the weight."""
        return self.scale.float()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) to (batch, out channels, rows, columns)."""
        return super().forward(patches(input, self.kernel)).permute(0, 3, 1, 2)


class IntegerEmbedding(nn.Module):
    """`QuantEmbedding` over packed rows: those of the batch are gathered, then unpacked."""

    packed: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: Codes):
        super().__init__()
        self.width, self.bits = weight.codes.shape[-1], weight.bits
        self.are_odd = weight.are_odd
        self.register_buffer("packed", pack(weight.stored, self.bits, signed(self.bits)))
        self.register_buffer("scale", weight.scale)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Token ids of any shape to (..., embedding_dim)."""
        codes = unpack(F.embedding(input, self.packed), self.bits, self.width)
        codes = 2 * codes + 1 if self.are_odd else codes
        return codes * (F.embedding(input, self.scale) if self.scale.shape[0] > 1 else self.scale.view(()))


def with_integer_arithmetic(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a QAT or packed model that computes its quantized products by the operators of an exported file.

    Raises:
        TrituneError: its activations are quantized in a way that has no such operator.
    """
    model = copy.deepcopy(model)
    stand_ins = {name: made for name, module in model.named_modules() if (made := _stand_in(module)) is not None}
    for name, stand_in in stand_ins.items():
        model.set_submodule(name, stand_in)
    for state in instrument_of(model).states:
        state.products = IntegerProducts
    return model


def _stand_in(module: nn.Module) -> nn.Module | None:
    weight = codes_of(module)
    if weight is None:
        return None
    if isinstance(module, QuantConv2d | PackedConv2d | QuantLinear | PackedLinear):
        bias = None if module.bias is None else module.bias.detach()
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            return IntegerConv2d((height, width), weight, bias, module.input_quantizer)
        return IntegerLinear(weight, bias, module.input_quantizer)
    return IntegerEmbedding(weight)


def _codes(values: torch.Tensor, quantizer: Quantizer, zero_point: int) -> tuple[torch.Tensor, torch.Tensor]:
    if not isinstance(quantizer, Uniform):
        raise TrituneError(f"activations quantized by {type(quantizer).__name__} cannot be exported")
    dims = [] if quantizer.granularity is Granularity.TENSOR else list(quantizer.granularity.dims(values))
    return quantize(values, dims, quantizer.largest_code, quantizer.clip, zero_point, False)
