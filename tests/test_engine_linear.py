"""Packed Linears in the native library: the bits of torch, whatever comes in, and never those of a weight that was."""

import math
from unittest import mock

import pytest
import torch
from torch import nn

import tritune
from combinations import crossed
from test_packing import CASES, weights
from test_quantizer_laws import started
from tritune.checkpoints.native_product import Product, can_be_native
from tritune.checkpoints.packed import PackedLinear
from tritune.engine import binding
from tritune.modeling.layers import QuantLinear
from tritune.quant import Granularity, Uniform

if not binding.available():
    pytest.skip(binding.why_not(), allow_module_level=True)

ROW, TOKEN = Granularity.ROW, Granularity.TOKEN


def product_of(case=("twn", 2, ROW), weight: torch.Tensor | None = None, inputs: Uniform | None = None, bias=True):
    """A packed Linear with its native product, and one without."""
    weight = torch.randn(7, 33) if weight is None else weight
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
    with torch.no_grad():
        linear.weight.copy_(weight)
    twin = QuantLinear.from_float(linear, started(case, linear.weight), inputs or Uniform(8, TOKEN))
    plain, packed = PackedLinear.from_quantized(twin), PackedLinear.from_quantized(twin)
    if can_be_native(packed):
        packed.native = Product(packed)
    return packed, plain


OF_TWO_BITS = {name: case for name, case in CASES.items() if case[1] == 2}
INPUTS = {
    "8 bits": Uniform(8, TOKEN),
    "no clip": Uniform(8, TOKEN, math.inf),
    "4 bits": Uniform(4, TOKEN, 1.0),
    "2 bits": Uniform(2, TOKEN),
}


def nasty(columns: int) -> dict[str, torch.Tensor]:
    """Inputs of the last dimension `columns`: rows of zeros, of the smallest and the largest, and what is no number."""
    normal = 2 * torch.randn(5, 3, columns)
    normal[0, 1] = 0
    tiny, huge, infinite, nan = (normal.clone() for _ in range(4))
    tiny[1], huge[1] = 1e-20 * tiny[1], 1e30 * huge[1]
    tiny[2], huge[2] = 1e-38 * tiny[2], 1.5e38 * huge[2].clamp(-2, 2)
    infinite[1, 0, 0], infinite[2, 0, -1] = math.inf, -math.inf
    nan[1, 0, 0], nan[3, 2, -1] = math.nan, math.nan
    ties = (torch.arange(2 * columns).view(2, columns) % 255 - 127) / 2 + 0.25
    views = normal.transpose(0, 1), normal[::2], normal[0]
    return {"normal": normal, "tiny": tiny, "huge": huge, "infinite": infinite, "nan": nan, "ties": ties} | {
        f"view {number}": view for number, view in enumerate(views)
    }


@pytest.mark.parametrize(("case", "inputs"), crossed(OF_TWO_BITS, INPUTS))
@torch.no_grad()
def test_a_product_has_the_bits_of_torch(case, inputs):
    for bias in (True, False):
        for name, weight in weights().items():
            packed, plain = product_of(case, weight, inputs, bias)
            for kind, values in nasty(weight.shape[1]).items():
                with mock.patch.object(
                    tritune.compute.products, "linear", side_effect=AssertionError("torch was asked")
                ):
                    found = packed(values)
                assert torch.equal(found.nan_to_num(7e7), plain(values).nan_to_num(7e7)), (name, kind)


@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (16, 16), (17, 65), (48, 130), (200, 1000), (33, 4096)], ids=str)
@torch.no_grad()
def test_a_product_of_any_shape_on_any_number_of_threads(shape):
    packed, plain = product_of(weight=torch.randn(shape))
    before = torch.get_num_threads()
    for rows in (1, 2, 63, 64, 65, 300):
        values = torch.randn(rows, shape[1])
        expected = plain(values)
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(packed(values), expected)
        torch.set_num_threads(before)


@torch.no_grad()
def test_what_has_no_product():
    """Other widths, a scale per tensor, whose sums are torch's own, and activations that are not quantized."""
    for case, inputs in (
        (CASES["uniform-4-row"], None),
        (("twn", 2, ROW), Uniform(8)),
        (("twn", 2, ROW), Uniform(8, ROW)),
    ):
        assert not can_be_native(product_of(case, inputs=inputs)[0])
    packed, plain = product_of()
    packed.input_quantizer = plain.input_quantizer = None
    values = torch.randn(3, 33)
    assert torch.equal(packed(values), plain(values))


def test_a_gradient_is_torchs():
    packed, plain = product_of()
    for values in (torch.randn(3, 33), torch.randn(3, 33, requires_grad=True)):
        (found,) = torch.autograd.grad(packed(values).sum(), packed.bias)
        (expected,) = torch.autograd.grad(plain(values).sum(), plain.bias)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("change", ["scale", "codes", "bias", "weight", "data"])
@torch.no_grad()
def test_a_changed_linear_is_not_stale(change):
    packed, plain = product_of()
    values = torch.randn(3, 33)
    before = packed(values)
    for module in (packed, plain):
        if change == "scale":
            module.weight_scale.mul_(2)
        elif change == "codes":
            module.weight.bitwise_xor_(torch.tensor(1, dtype=torch.uint8)).bitwise_and_(85)
        elif change == "bias":
            module.bias.add_(1)
        elif change == "weight":
            module.weight = nn.Parameter(torch.full_like(module.weight, 85), requires_grad=False)
        else:
            module.bias.data = module.bias.data + 1
    assert torch.equal(packed(values), plain(values)) and not torch.equal(packed(values), before)
