"""The three operators of an exported graph, each in torch and in ONNX.

The torch operators run, so that the modules of `integer.py` can be compared with those they replace; torch.onnx traces
a call as a single node, and `translations` gives its ONNX subgraph.

    quantize         scale = largest magnitude (at most clip) / 127; codes = round(x / scale), clipped to -127 ... 127
    matmul_integer   (codes of x) @ (codes of w) in int32, * scale of x * scale of w
    unpack           bytes to the signed integers in them, in the layout of `packing`

MatMulInteger takes 8-bit operands of either sign, but on x86 ONNX Runtime has kernels for an unsigned left operand
only: two signed ones run in a scalar loop, tens of times slower. So codes of activations are stored plus 128, with a
zero point of 128, which is the same sum. CPUs without VNNI add two products of an unsigned and a signed operand in 16
bits, where 2 * 255 * 127 does not fit: right operands of 8 bits are therefore unsigned too. (Beside probabilities,
whose codes are never negative, they could be signed; but then ONNX Runtime dequantizes and quantizes V once more to
transpose it.)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import library

from ...checkpoints import packing
from ...quant.uniform import SMALLEST_MAGNITUDE
from .codes import signed

ZERO_POINT = 128
# Of onnx.TensorProto.
_FLOAT, _INT32 = 1, 6


@library.custom_op("tritune::quantize", mutates_args=())
def quantize(
    values: torch.Tensor, dims: Sequence[int], largest_code: int, clip: float, zero_point: int, signed: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of a float tensor, as `quant.Uniform` finds them but for the last bit of a quotient, and their scale.

    Args:
        values: any shape.
        dims: the dimensions that share a scale; empty for all of them.
        largest_code: 127 for 8 bits.
        clip: values are clipped to plus or minus this.
        zero_point: is added to the codes.
        signed: whether the codes are int8 instead of uint8.

    Returns:
        Codes shaped like `values`; scale broadcastable against them, of no dimensions where all share it.
    """
    magnitude = values.abs()
    peak = magnitude.amax(tuple(dims), keepdim=True) if dims else magnitude.amax()
    scale = peak.clamp(SMALLEST_MAGNITUDE, clip) / largest_code
    codes = (values / scale).round().clamp(-largest_code, largest_code) + zero_point
    return codes.to(torch.int8 if signed else torch.uint8), scale


@quantize.register_fake
def _(
    values: torch.Tensor, dims: Sequence[int], largest_code: int, clip: float, zero_point: int, signed: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    reduced = {dim % values.ndim for dim in dims}
    shape = [1 if dim in reduced else size for dim, size in enumerate(values.shape)] if dims else []
    return torch.empty_like(values, dtype=torch.int8 if signed else torch.uint8), values.new_empty(shape)


@library.custom_op("tritune::matmul_integer", mutates_args=())
def matmul_integer(
    left: torch.Tensor,
    left_scale: torch.Tensor,
    right: torch.Tensor,
    right_scale: torch.Tensor,
    left_zero_point: int,
    right_zero_point: int,
) -> torch.Tensor:
    """(left - its zero point) @ (right - its zero point), summed in integers, times both scales.

    Args:
        left, right: codes in 8 bits, (..., n, k) and (..., k, m).
        left_scale, right_scale: of no dimensions, or broadcastable against the product.
        left_zero_point, right_zero_point: 0 for signed codes.

    Returns:
        float32, (..., n, m).
    """
    # float64 holds these sums exactly and, unlike integers, has a fast product.
    product = (left.double() - left_zero_point) @ (right.double() - right_zero_point)
    if not left_scale.ndim:
        return product.float() * (left_scale * right_scale)
    return product.float() * left_scale * right_scale


@matmul_integer.register_fake
def _(
    left: torch.Tensor,
    left_scale: torch.Tensor,
    right: torch.Tensor,
    right_scale: torch.Tensor,
    left_zero_point: int,
    right_zero_point: int,
) -> torch.Tensor:
    return left_scale.new_empty((*left.shape[:-1], right.shape[-1]))


@library.custom_op("tritune::unpack", mutates_args=())
def unpack(packed: torch.Tensor, bits: int, width: int) -> torch.Tensor:
    """`packing.unpack` of signed integers, as floats: bytes (..., ceil(width * bits / 8)) to (..., width).

    Args:
        packed: uint8.
        bits: 2, 4 or 8.
        width: codes per row.
    """
    return packing.unpack(packed, bits, width, signed(bits)).float()


@unpack.register_fake
def _(packed: torch.Tensor, bits: int, width: int) -> torch.Tensor:
    return packed.new_empty((*packed.shape[:-1], width), dtype=torch.float32)


def translations() -> dict[Callable, Callable]:
    """What each operator becomes in ONNX of opset 18, as `torch.onnx.export` takes it."""
    from onnxscript import opset18

    op: Any = opset18  # typed for scripts, whose arguments are tensors; here they are values of a graph

    def call(operator: str, *inputs: Any, **attributes: Any) -> Any:
        return getattr(op, operator)(*inputs, **attributes)

    def onnx_quantize(
        values: Any, dims: Sequence[int], largest_code: int, clip: float, zero_point: int, signed: bool
    ) -> Any:
        kind = np.int8 if signed else np.uint8
        axes = {"axes": op.Constant(value_ints=dims)} if dims else {"keepdims": 0}
        bounds = [_constant(op, bound, np.float32) for bound in (SMALLEST_MAGNITUDE, clip) if bound < math.inf]
        magnitude = op.Abs(values) if signed or zero_point else values
        peak = op.Clip(op.ReduceMax(magnitude, **axes), *bounds)
        scale = op.Div(peak, _constant(op, largest_code, np.float32))
        # Of scales that are not constant, QuantizeLinear takes one, or one per row of a matrix.
        rows = (op.Div(values, peak), _constant(op, 1 / largest_code, np.float32)) if dims else (values, scale)
        codes = op.QuantizeLinear(*rows, _constant(op, zero_point, kind))
        if clip < math.inf:
            low, high = zero_point - largest_code if signed or zero_point else 0, zero_point + largest_code
            codes = op.Clip(codes, _constant(op, low, kind), _constant(op, high, kind))
        return codes, scale

    def onnx_matmul_integer(
        left: Any, left_scale: Any, right: Any, right_scale: Any, left_zero_point: int, right_zero_point: int
    ) -> Any:
        zeros = [_constant(op, left_zero_point, np.uint8)]
        zeros += [_constant(op, right_zero_point, np.uint8)] if right_zero_point else []
        product = op.Cast(op.MatMulInteger(left, right, *zeros), to=_FLOAT)
        if not len(left_scale.shape):
            return op.Mul(product, op.Mul(left_scale, right_scale))
        return op.Mul(op.Mul(product, left_scale), right_scale)

    return {
        torch.ops.tritune.quantize.default: onnx_quantize,
        torch.ops.tritune.matmul_integer.default: onnx_matmul_integer,
        torch.ops.tritune.unpack.default: lambda packed, bits, width: onnx_unpack(
            call, packed, bits, width, np.float32
        ),
    }


def onnx_unpack(call: Callable, packed: Any, bits: int, width: int, kind: type, are_odd: bool = False) -> Any:
    """`unpack` as nodes that `call(operator, *inputs, **attributes)` makes: every byte is looked up in a table.

    Args:
        call: what makes a node.
        packed: uint8 (..., ceil(width * bits / 8)).
        bits, width: as `unpack` takes them.
        kind: numpy's dtype of the result.
        are_odd: whether what is stored are the k of codes 2 * k + 1.
    """
    import onnx_ir as ir

    table = packing.unpack(torch.arange(256, dtype=torch.uint8).view(-1, 1), bits, 8 // bits, signed(bits)).numpy()
    table = (2 * table + 1 if are_odd else table).astype(kind)
    codes = call("Gather", call("Constant", value=ir.tensor(table)), call("Cast", packed, to=_INT32))
    # 0 keeps a dimension; the last two, bytes and their codes, become one.
    rows = [0] * (len(packed.shape) - 1)
    codes = call("Reshape", codes, call("Constant", value_ints=[*rows, -1]))
    if width * bits % 8 == 0:
        return codes
    return call("Slice", codes, *(call("Constant", value_ints=[bound]) for bound in (0, width, -1)))


def _constant(op: Any, value: float, kind: type) -> Any:
    import onnx_ir as ir

    return op.Constant(value=ir.tensor(np.array(value, kind)))
