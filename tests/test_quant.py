"""Quantizers against loops over plain Python floats, and the laws that every row of the table obeys."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tritune import Quantization, TrituneError
from tritune.modeling.layers import QuantEmbedding, QuantLinear
from tritune.quant import (
    Granularity,
    LeastSquaresTernary,
    Ternary,
    Uniform,
    straight_through,
    ternarize,
    ternarize_least_squares,
)

TENSOR, ROW, TOKEN, HEAD = Granularity.TENSOR, Granularity.ROW, Granularity.TOKEN, Granularity.HEAD
CLIP = 2.5

QUANTIZERS = {
    **{f"ternary-{g.value}": Ternary(g) for g in (TENSOR, ROW, HEAD)},
    **{f"least-squares-{g.value}": LeastSquaresTernary(g) for g in (TENSOR, ROW, HEAD)},
    **{f"uniform-{bits}-tensor": Uniform(bits) for bits in range(2, 9)},
    **{f"uniform-{bits}-{g.value}": Uniform(bits, g) for bits in (4, 8) for g in (ROW, TOKEN, HEAD)},
}
every_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)

# Dyadic numbers: sums and means of few of them are exact, so that a loop sees the same ties.
dyadic = st.integers(-256, 256).map(lambda code: code / 64)
shapes = st.sampled_from([(1,), (5,), (1, 1), (4, 3), (3, 1), (2, 3, 4), (2, 2, 3, 2)])


@st.composite
def tensors(draw, shape=shapes):
    size = draw(shape)
    values = draw(st.lists(dyadic, min_size=math.prod(size), max_size=math.prod(size)))
    tensor = torch.tensor(values, dtype=torch.float64).view(size)
    if draw(st.booleans()):
        tensor.view(-1, size[-1])[0] = 0
    return tensor


def groups(shape: tuple[int, ...], granularity: Granularity) -> list[list[tuple[int, ...]]]:
    """The positions that share a scale."""
    own = {TENSOR: 0, ROW: len(shape) - 1, TOKEN: len(shape) - 1, HEAD: len(shape) - 2}[granularity]
    found = {}
    for position in itertools.product(*map(range, shape)):
        found.setdefault(position[:own], []).append(position)
    return list(found.values())


def twn_loop(values: list[float], factor: float) -> tuple[list[int], float]:
    threshold = factor * (sum(abs(v) for v in values) / len(values))
    kept = [abs(v) for v in values if abs(v) > threshold]
    scale = sum(kept) / len(kept) if kept else 0.0
    return [int(abs(v) > threshold) * (1 if v > 0 else -1) for v in values], scale


def uniform_loop(values: list[float], bits: int) -> tuple[list[Fraction], Fraction]:
    """Unrounded codes and the scale, in exact arithmetic."""
    clipped = [Fraction(max(-CLIP, min(CLIP, v))) for v in values]
    scale = max(abs(v) for v in clipped) / (2 ** (bits - 1) - 1)
    return [v / scale if scale else v for v in clipped], scale


def sample(shape=(3, 4, 5), dtype=torch.float64, spread=1.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * spread).to(dtype)


@settings(max_examples=60, deadline=None)
@given(tensors(), st.sampled_from([TENSOR, ROW]), st.sampled_from([0.5, 0.7, 1.0]))
def test_ternarize_is_the_loop(weight, granularity, factor):
    codes, scale = ternarize(weight, granularity, factor)
    scale = scale.expand(weight.shape)
    assert codes.dtype is torch.int8 and codes.shape == weight.shape
    for group in groups(weight.shape, granularity):
        expected, expected_scale = twn_loop([weight[at].item() for at in group], factor)
        assert [codes[at].item() for at in group] == expected
        for at in group:
            assert scale[at].item() == pytest.approx(expected_scale, rel=1e-12, abs=0)


def test_a_magnitude_at_the_threshold_is_dropped():
    codes, scale = ternarize(torch.tensor([1.0, -1.0, 3.0, -3.0]), threshold_factor=0.5)
    assert codes.tolist() == [0, 0, 1, -1] and scale.item() == 3
    codes, scale = ternarize(torch.tensor([0.7, 1.3], dtype=torch.float64))
    assert codes.tolist() == [0, 1] and scale.item() == 1.3


@pytest.mark.parametrize("value", [0.75, -2.0, 0.0])
@pytest.mark.parametrize("find", [ternarize, ternarize_least_squares])
def test_a_single_value_is_its_own_scale(find, value):
    codes, scale = find(torch.tensor([[value]]), ROW)
    assert (codes * scale).item() == value and scale.item() >= 0


def squared_error(weight: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> float:
    return (weight.double() - codes.double() * scale.double()).square().sum().item()


@settings(max_examples=40, deadline=None)
@given(st.lists(dyadic, min_size=1, max_size=6))
def test_least_squares_is_the_best_of_all_codes(values):
    weight = torch.tensor(values, dtype=torch.float64)
    best = weight.square().sum().item()
    for codes in itertools.product((-1, 0, 1), repeat=len(values)):
        kept = sum(map(abs, codes))
        if kept:
            along = sum(c * v for c, v in zip(codes, values, strict=True))
            best = min(best, weight.square().sum().item() - along**2 / kept)
    codes, scale = ternarize_least_squares(weight)
    assert set(codes.tolist()) <= {-1, 0, 1} and scale.item() >= 0
    assert squared_error(weight, codes, scale) == pytest.approx(best, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(tensors(), st.sampled_from([TENSOR, ROW]))
def test_twn_is_never_better_than_the_optimum(weight, granularity):
    best = squared_error(weight, *ternarize_least_squares(weight, granularity))
    assert squared_error(weight, *ternarize(weight, granularity)) >= best - 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [Ternary, LeastSquaresTernary])
def test_ternary_error_barely_depends_on_the_dtype(kind, dtype):
    weight = sample((300, 300), spread=0.02).to(dtype)
    error = squared_error(weight, *kind().quantize(weight))
    assert error <= 1.01 * squared_error(weight, *kind().quantize(weight.double()))


@settings(max_examples=60, deadline=None)
@given(tensors(), st.sampled_from(list(Granularity)), st.integers(2, 8))
def test_uniform_is_the_loop(values, granularity, bits):
    if granularity is HEAD and values.ndim < 2:
        values = values[None]
    quantizer = Uniform(bits, granularity)
    codes, result = quantizer.quantize(values)[0], quantizer(values)
    for group in groups(values.shape, granularity):
        exact, scale = uniform_loop([values[at].item() for at in group], bits)
        for at, code in zip(group, exact, strict=True):
            tie = abs(code % 1 - Fraction(1, 2)) < 1e-12  # either neighbour will do
            assert codes[at].item() in ({math.floor(code), math.ceil(code)} if tie else {round(code)})
            assert result[at].item() == pytest.approx(codes[at].item() * float(scale), rel=1e-14, abs=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_rounds_ties_to_even(dtype):
    codes, _ = Uniform(8).quantize(torch.tensor([127, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5], dtype=dtype) / 64)
    assert codes.tolist() == [127, 0, 2, 2, 0, -2, 126]


@every_quantizer
def test_codes_share_the_scale_of_their_granularity(quantizer):
    values = sample() * torch.tensor([0.01, 1, 100])[:, None, None]
    whole = quantizer(values)
    for group in groups(values.shape, quantizer.granularity):
        index = tuple(torch.tensor(group).T)
        alone = quantizer(values[index].view(1, 1, -1))
        torch.testing.assert_close(whole[index], alone.flatten(), rtol=1e-12, atol=0)


@every_quantizer
def test_codes_are_in_range_and_rebuild_the_call(quantizer):
    values = sample()
    codes, scale = quantizer.quantize(values)
    largest = 1 if isinstance(quantizer, Ternary) else 2 ** (quantizer.bits - 1) - 1
    assert codes.dtype is torch.int8 and codes.abs().max() <= largest
    assert scale.expand(values.shape).gt(0).all()
    rebuilt = quantizer.dequantize(codes, scale)
    last_bits = 0 if isinstance(quantizer, Ternary) else 4 * torch.finfo(values.dtype).eps
    torch.testing.assert_close(rebuilt, quantizer(values), rtol=last_bits, atol=0)


@every_quantizer
def test_quantizing_twice_changes_nothing(quantizer):
    once = quantizer(sample())
    assert torch.equal(quantizer.quantize(once)[0], quantizer.quantize(sample())[0])
    torch.testing.assert_close(quantizer(once), once, rtol=1e-14, atol=0)


@every_quantizer
@pytest.mark.parametrize("factor", [0.125, 2.0, 4.0])
def test_powers_of_two_pass_through_below_the_clip(quantizer, factor):
    values = sample(dtype=torch.float32, spread=0.1)
    assert (values * factor).abs().max() < CLIP
    assert torch.equal(quantizer(values * factor), quantizer(values) * factor)


@every_quantizer
def test_negation_passes_through(quantizer):
    assert torch.equal(quantizer(-sample()), -quantizer(sample()))


@every_quantizer
def test_the_clip_is_the_end_of_the_world(quantizer):
    values = sample()
    outside = values.abs() > CLIP
    assert outside.any()
    assert torch.equal(quantizer(values.where(~outside, values * 1e6)), quantizer(values))
    infinite = values.where(~outside, values.sign() * torch.inf)
    assert torch.equal(quantizer(infinite), quantizer(values))


@every_quantizer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_zeros_stay_zeros(quantizer, dtype):
    values = torch.zeros(2, 3, 4, dtype=dtype)
    assert torch.equal(quantizer(values), values)
    assert torch.equal(quantizer.dequantize(*quantizer.quantize(values)), values)
    values[1, 2, 3] = 1
    assert torch.equal(quantizer(values), values)


@every_quantizer
def test_tiny_values_stay_finite(quantizer):
    for value in (1e-30, 1e-38, 1e-45):
        result = quantizer(torch.full((1, 2, 2), value))
        assert result.isfinite().all() and (result >= 0).all() and (result <= 1.001e-30).all()


@every_quantizer
def test_nan_spoils_its_own_group_and_no_other(quantizer):
    values = sample()
    values[1, 2, 3] = torch.nan
    codes_result = quantizer.dequantize(*quantizer.quantize(values))
    for group in groups(values.shape, quantizer.granularity):
        index = tuple(torch.tensor(group).T)
        for result in (quantizer(values)[index], codes_result[index]):
            assert result.isnan().all() if (1, 2, 3) in group else result.isfinite().all()


@every_quantizer
def test_gradient_passes_strictly_inside_the_clip(quantizer):
    values = sample()
    values[0, 0, :4] = torch.tensor([CLIP, -CLIP, math.nextafter(CLIP, 0), 0.0])
    values.requires_grad_()
    grad = sample().flip(0)
    quantizer(values).backward(grad)
    for at in itertools.product(*map(range, values.shape)):
        assert values.grad[at] == (grad[at] if abs(values[at].item()) < CLIP else 0)


@every_quantizer
def test_second_derivatives_go_through(quantizer):
    values = sample().requires_grad_()
    inside = values.detach().abs() < CLIP
    grad_output, direction = sample().flip(1).requires_grad_(), sample().flip(2)
    (grad,) = torch.autograd.grad(quantizer(values), values, grad_output, create_graph=True)
    (grad_of_grad,) = torch.autograd.grad(grad, grad_output, direction)
    assert torch.equal(grad_of_grad, direction * inside)

    (grad,) = torch.autograd.grad(quantizer(values).pow(3).sum(), values, create_graph=True)
    (product,) = torch.autograd.grad(grad, values, direction)
    torch.testing.assert_close(product, 6 * quantizer(values) * inside * direction)


def test_straight_through_is_the_identity_to_every_derivative_inside_the_clip():
    values = sample((6,)).requires_grad_()

    def cube(x):
        return straight_through(x, x, clip=100.0).pow(3)

    assert torch.autograd.gradcheck(cube, values)
    assert torch.autograd.gradgradcheck(cube, values)


@pytest.mark.parametrize("weight", [None, Ternary(TENSOR), Ternary(ROW), Uniform(4, ROW)], ids=str)
@pytest.mark.parametrize("inputs", [None, Uniform(8, TENSOR), Uniform(8, TOKEN)], ids=str)
def test_quant_linear_is_quantized_matrices(weight, inputs):
    linear = torch.nn.Linear(5, 4, dtype=torch.float64)
    twin = QuantLinear.from_float(linear, weight, inputs)
    x = sample()
    dense_weight = linear.weight if weight is None else weight(linear.weight)
    dense_input = x if inputs is None else inputs(x)
    torch.testing.assert_close(twin(x), dense_input @ dense_weight.T + linear.bias, rtol=1e-12, atol=1e-12)
    assert twin.weight is linear.weight and twin.bias is linear.bias and type(linear) is torch.nn.Linear
    twin(x).sum().backward()
    expected = dense_input.sum((0, 1)).expand(4, 5)
    torch.testing.assert_close(linear.weight.grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("quantizer", [None, Ternary(TENSOR), Ternary(ROW), Uniform(8, ROW)], ids=str)
def test_quant_embedding_is_rows_of_the_quantized_table(quantizer):
    embedding = torch.nn.Embedding(6, 4, padding_idx=0, dtype=torch.float64)
    twin = QuantEmbedding.from_float(embedding, quantizer)
    ids = torch.tensor([[0, 3, 3], [5, 0, 1]])
    table = embedding.weight if quantizer is None else quantizer(embedding.weight)
    assert torch.equal(twin(ids), table[ids])
    twin(ids).sum().backward()
    counts = torch.tensor([0.0, 1, 0, 2, 0, 1], dtype=torch.float64)
    assert torch.equal(embedding.weight.grad, counts[:, None].expand(6, 4))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"weight_bits": 0}, "weight_bits"),
        ({"weight_bits": 9}, "weight_bits"),
        ({"weight_bits": True}, "weight_bits"),
        ({"activation_bits": 8.0}, "activation_bits"),
        ({"activation_bits": 0}, "activation_bits"),
        ({"weight_granularity": "token"}, "weight_granularity"),
        ({"embedding_granularity": "head"}, "embedding_granularity"),
        ({"activation_granularity": "row"}, "activation_granularity"),
        ({"weight_quantizer": "magic"}, "weight_quantizer"),
        ({"weight_quantizer": "twn", "weight_bits": 4}, "weight_quantizer"),
        ({"weight_quantizer": "uniform"}, "weight_quantizer"),
        ({"weight_quantizer": "uniform", "weight_bits": None}, "weight_quantizer"),
        ({"weight_clip": 0.0}, "weight_clip"),
        ({"weight_clip": math.nan}, "weight_clip"),
        ({"weight_clip": "2.5"}, "weight_clip"),
        ({"threshold_factor": -0.7}, "threshold_factor"),
        ({"ffn_in": "no"}, "ffn_in"),
        ({"layers": 1}, "layers"),
        ({"layers": (True,)}, "layers"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_by_name(values, key):
    with pytest.raises(TrituneError, match=key):
        Quantization(**values)


def plain_uniform(values: torch.Tensor, quantizer: Uniform) -> torch.Tensor:
    """The published order of operations, with nothing left out and nothing in place."""
    clipped = values.to(torch.promote_types(values.dtype, torch.float32)).clamp(-CLIP, CLIP)
    largest = clipped.abs().amax(quantizer.granularity.dims(values), keepdim=True).clamp(min=1e-30)
    codes_per_unit = quantizer.largest_code / largest
    return (torch.round(clipped * codes_per_unit) / codes_per_unit).to(values.dtype)


def plain_twn(weight: torch.Tensor, quantizer: Ternary) -> torch.Tensor:
    dims = quantizer.granularity.dims(weight)
    clipped = weight.to(torch.promote_types(weight.dtype, torch.float32)).clamp(-CLIP, CLIP)
    magnitude = clipped.abs()
    kept = magnitude > 0.7 * magnitude.mean(dims, keepdim=True)
    scale = (magnitude * kept).sum(dims, keepdim=True) / kept.sum(dims, keepdim=True).clamp(min=1)
    return (clipped.sign() * kept * scale).to(weight.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.02, 1.0, 40.0], ids=["inside", "some clipped", "most clipped"])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("name", [name for name in QUANTIZERS if not name.startswith("least-squares")])
def test_the_fast_path_is_the_plain_one_bit_for_bit(name, layout, size, dtype):
    quantizer = QUANTIZERS[name]
    values = (size * torch.randn(2, 3, 17, 33)).to(dtype)
    values[0, 1] = 0
    values = values.mT if layout == "transposed" else values
    values.requires_grad_()
    output, grad = quantizer(values), torch.randn_like(values)
    plain = plain_uniform if isinstance(quantizer, Uniform) else plain_twn
    assert torch.equal(output, plain(values.detach(), quantizer))
    output.backward(grad)
    assert torch.equal(values.grad, grad * (values.detach().abs() < CLIP))
    codes, scale, _ = quantizer.integers(values, torch.bfloat16)
    expected, expected_scale = quantizer.quantize(values)
    assert torch.equal(codes.to(torch.int8), expected)
    assert torch.equal(scale, expected_scale.clamp(min=1e-15))
