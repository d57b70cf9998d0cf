"""Products of quantized operands: the published order in float32, codes per token or in bfloat16; what is done once."""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional as F

from tritune.compute import held, products
from tritune.modeling.forward_pass import ForwardPass
from tritune.modeling.layers import QuantLinear
from tritune.quant import Granularity, LeastSquaresTernary, MinMax, Quantizer, Ternary, Uniform

TENSOR, ROW, TOKEN, HEAD = Granularity.TENSOR, Granularity.ROW, Granularity.TOKEN, Granularity.HEAD
BFLOAT16 = torch.bfloat16
WEIGHTS = {
    "twn": Ternary(TENSOR),
    "twn-row": Ternary(ROW),
    "least-squares": LeastSquaresTernary(ROW),
    "4 bits": Uniform(4),
}
INPUTS = {"tensor": Uniform(8, TENSOR), "token": Uniform(8, TOKEN), "4": Uniform(4, TENSOR)}
every_weight = pytest.mark.parametrize("weights", [*WEIGHTS.values(), None], ids=[*WEIGHTS, "float"])
every_input = pytest.mark.parametrize("inputs", [*INPUTS.values(), None], ids=[*INPUTS, "float"])


def dequantized(quantizer: Quantizer | None, values: torch.Tensor) -> torch.Tensor:
    """Float64 values of the codes, straight from their definition."""
    if quantizer is None:
        return values.double()
    codes, scale = quantizer.quantize(values)
    return codes.double() * scale.double()


def inside(quantizer: Quantizer | None, values: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(values) if quantizer is None else (values.abs() < quantizer.clip).to(values.dtype)


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs that are clipped here and there, with a row of zeros; weights with a row of zeros; a bias."""
    values, weight = 1.5 * torch.randn(3, 5, 64), 0.1 * torch.randn(48, 64)
    values[0, 1], weight[7] = 0, 0
    return values, weight, torch.randn(48)


def exact(left: torch.Tensor, right: torch.Tensor, quantizers: tuple[Quantizer, Quantizer], *factors) -> torch.Tensor:
    """Left @ right in whole numbers, then the scales, one after the other, and further factors."""
    (codes, scale), (others, other_scale) = (q.quantize(t) for q, t in zip(quantizers, (left, right), strict=True))
    if right.ndim == 2:
        others, other_scale = others.mT, other_scale.mT
    product = torch.matmul(codes.long(), others.long()).float()
    for factor in (scale.clamp(min=1e-15), other_scale.clamp(min=1e-15), *factors):
        product = product * factor
    return product


@every_weight
@every_input
def test_in_float32_the_operands_are_dequantized_first_unless_every_token_has_a_scale(weights, inputs):
    values, weight, bias = example()
    if weights is not None and inputs is not None and inputs.granularity is TOKEN:
        expected = exact(values, weight, (inputs, weights)) + bias
    else:
        expected = F.linear(
            values if inputs is None else inputs(values), weight if weights is None else weights(weight), bias
        )
    assert torch.equal(products.linear(values, weight, bias, inputs, weights), expected)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("bits", [8, 3])
def test_per_token_products_have_the_gradients_of_dequantized_operands(weights, bits):
    """Against float64: each gradient is one product, rounded as float32 rounds sums."""
    values, weight, bias = (tensor.requires_grad_() for tensor in example())
    inputs = Uniform(bits, TOKEN)
    output = products.linear(values, weight, bias, inputs, weights)
    grad = torch.randn_like(output)
    output.backward(grad)
    left, right, wide = dequantized(inputs, values.detach()), dequantized(weights, weight.detach()), grad.double()
    rows, grads = left.flatten(0, 1), wide.flatten(0, 1)
    for latent, quantizer, expected, terms in (
        (values, inputs, wide @ right, wide.abs() @ right.abs()),
        (weight, weights, grads.T @ rows, grads.abs().T @ rows.abs()),
    ):
        expected = expected * inside(quantizer, latent.detach())
        assert ((latent.grad.double() - expected).abs() <= 2**-20 * terms + 1e-6).all()
    torch.testing.assert_close(bias.grad, grad.sum((0, 1)))


def test_sums_too_large_for_float32_are_exact_all_the_same():
    """127 * 127 * 3000 is beyond 2^24; the sum of the first row is odd, and so no float32 near it."""
    values, weight = torch.ones(2, 3000), torch.ones(2, 3000)
    values[0, 0] = 126 / 127
    inputs, weights = Uniform(8, TOKEN), Uniform(8, ROW)
    assert torch.equal(products.linear(values, weight, None, inputs, weights), exact(values, weight, (inputs, weights)))
    codes = inputs.quantize(values)[0].double() @ weights.quantize(weight)[0].double().T
    assert codes[0, 0] > 2**24 and codes[0, 0] % 2 == 1
    probs, value = torch.rand(1, 1, 3, 2000), torch.randn(1, 1, 2000, 4)
    assert torch.equal(
        products.context(probs, value, inputs, Uniform(8, HEAD)), exact(probs, value, (inputs, Uniform(8, HEAD)))
    )


@torch.no_grad()
@pytest.mark.parametrize(
    "pair", [(MinMax(8, TOKEN), MinMax(8)), (Uniform(8, TOKEN), MinMax(8)), (MinMax(8, TOKEN), Uniform(8))]
)
def test_per_token_operands_with_an_offset_are_dequantized(pair):
    """They are no multiples of their codes, however many of these would have been added up."""
    values, weight, bias = torch.randn(3, 2048), 0.1 * torch.randn(8, 2048), torch.randn(8)
    found = products.linear(values, weight, bias, *pair)
    assert found.dtype is torch.float32
    assert torch.equal(found, F.linear(pair[0](values), pair[1](weight), bias))


def test_per_token_products_do_not_depend_on_the_size_of_the_batch():
    values, weight, bias = torch.randn(64, 1, 384), torch.randn(96, 384), torch.randn(96)
    for weights in (Ternary(ROW), Ternary(TENSOR), Uniform(8, ROW), Uniform(8, TENSOR)):
        inputs = Uniform(8, TOKEN)
        whole = products.linear(values, weight, bias, inputs, weights)
        for size in (1, 2, 3, 7):
            parts = [products.linear(part, weight, bias, inputs, weights) for part in values.split(size)]
            assert torch.equal(torch.cat(parts), whole)
    query, key = torch.randn(8, 2, 1, 32), torch.randn(8, 2, 1, 32)
    whole = products.scores(query, key, inputs, inputs, 0.3)
    parts = [products.scores(*pair, inputs, inputs, 0.3) for pair in zip(query.split(1), key.split(1), strict=True)]
    assert torch.equal(torch.cat(parts), whole)


@every_weight
@every_input
def test_in_bfloat16_only_the_result_is_rounded(weights, inputs):
    """Against float64: two roundings of the product and one of the sum, each to 8 bits."""
    values, weight, bias = example()
    values, weight = (tensor.requires_grad_() for tensor in (values, weight))
    with torch.autocast("cpu", BFLOAT16):
        output = products.linear(values, weight, bias, inputs, weights)
    assert output.dtype is BFLOAT16
    left, right = dequantized(inputs, values), dequantized(weights, weight)
    product = left @ right.T
    bound = 2**-8 * (2 * product.abs() + (product + bias).abs() + bias.abs()) + 1e-6
    if inputs is None or weights is None:  # a float operand is rounded on its way in, as under any autocast
        bound += 2**-8 * (left.abs() @ right.abs().T)
    assert ((output.double() - product - bias).abs() <= bound).all()

    grad = torch.randn_like(output)
    output.backward(grad)
    grad = grad.double()
    for latent, quantizer, product in (
        (values, inputs, lambda grad, _, right: grad @ right),
        (weight, weights, lambda grad, left, _: grad.flatten(0, 1).T @ left.flatten(0, 1)),
    ):
        assert latent.grad.dtype is torch.float32
        expected = product(grad, left, right) * inside(quantizer, latent.detach())
        bound = 2**-6 * product(grad.abs(), left.abs(), right.abs()) + 1e-6
        assert ((latent.grad.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("quantizer", INPUTS.values(), ids=INPUTS)
def test_attention_products(quantizer):
    query, key, value = (torch.randn(2, 3, 5, 16) for _ in range(3))
    probs = torch.randn(2, 3, 5, 5).softmax(-1)
    of_value = Uniform(8, HEAD) if quantizer.granularity is TOKEN else quantizer
    if quantizer.granularity is TOKEN:
        (queries, query_scale), (keys, key_scale) = quantizer.quantize(query), quantizer.quantize(key)
        scores = torch.matmul(queries.long(), keys.long().mT).float() * query_scale * key_scale.mT * 0.25
        context = exact(probs, value, (quantizer, of_value))
    else:
        scores = torch.matmul(quantizer(query), quantizer(key).mT) * 0.25
        context = torch.matmul(quantizer(probs), of_value(value))
    assert torch.equal(products.scores(query, key, quantizer, quantizer, 0.25), scores)
    assert torch.equal(products.context(probs, value, quantizer, of_value), context)
    with torch.autocast("cpu", BFLOAT16):
        scores = products.scores(query, key, quantizer, quantizer, 0.25)
        context = products.context(probs, value, quantizer, of_value)
    assert scores.dtype is context.dtype is BFLOAT16
    expected = dequantized(quantizer, query) @ dequantized(quantizer, key).mT * 0.25
    torch.testing.assert_close(scores.double(), expected, rtol=2**-7, atol=1e-6)
    expected = dequantized(quantizer, probs) @ dequantized(of_value, value)
    torch.testing.assert_close(context.double(), expected, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
def test_zeros_leave_everything_finite(dtype):
    values, weight = torch.zeros(2, 3, 8, requires_grad=True), torch.zeros(4, 8, requires_grad=True)
    with torch.autocast("cpu", BFLOAT16, enabled=dtype is BFLOAT16):
        output = products.linear(values, weight, torch.ones(4), Uniform(), Ternary())
    output.sum().backward()
    assert torch.equal(output.float(), torch.ones(2, 3, 4))
    assert torch.equal(values.grad, torch.zeros_like(values)) and torch.equal(weight.grad, torch.zeros_like(weight))


class Counting(Uniform):
    """Counts how often it really quantizes."""

    calls = 0

    def _encode(self, values):
        type(self).calls += 1
        return super()._encode(values)


@contextmanager
def forward_pass():
    this = ForwardPass()
    this.begin()
    yield
    this.end()


def test_a_tensor_that_feeds_many_linears_of_a_model_is_quantized_once(monkeypatch):
    monkeypatch.setattr(Counting, "calls", 0)
    values, weight = torch.randn(2, 5, 8), torch.randn(4, 8)
    with forward_pass():
        first = [products.linear(values, weight, None, Counting(), None) for _ in range(3)]
        assert Counting.calls == 1
        assert all(torch.equal(output, F.linear(Uniform()(values), weight)) for output in first)
        products.linear(values, weight, None, Counting(4), None)
        assert Counting.calls == 2, "another quantizer"
        values[0, 0, 0] = 9.0
        assert torch.equal(products.linear(values, weight, None, Counting(), None), F.linear(Uniform()(values), weight))
        assert Counting.calls == 3, "a change in place"
        products.linear(values.clone(), weight, None, Counting(), None)
        assert Counting.calls == 4, "another tensor"
        products.linear(values, weight, None, Counting(), None)
        with forward_pass():
            products.linear(values, weight, None, Counting(), None)
        assert Counting.calls == 6, "another model's pass"
    for _ in range(2):
        products.linear(values, weight, None, Counting(), None)
    assert Counting.calls == 8, "outside of a model nothing is kept"
    with torch.inference_mode(), forward_pass():
        values = torch.randn(2, 5, 8)
        for _ in range(2):
            assert torch.equal(
                products.linear(values, weight, None, Counting(), None), F.linear(Uniform()(values), weight)
            )


def test_one_quantization_serves_every_gradient():
    """Q, K and V fed by one tensor have the gradients of three tensors."""
    values, weights = torch.randn(2, 5, 8), [torch.randn(4, 8) for _ in range(3)]
    shared = values.clone().requires_grad_()
    apart = [values.clone().requires_grad_() for _ in range(3)]
    with forward_pass():
        outputs = [products.linear(shared, weight, None, Uniform(), None) for weight in weights]
    sum(output.square().sum() for output in outputs).backward()
    for own, weight in zip(apart, weights, strict=True):
        products.linear(own, weight, None, Uniform(), None).square().sum().backward()
    torch.testing.assert_close(shared.grad, sum(own.grad for own in apart))


@pytest.fixture
def layer():
    return QuantLinear.from_float(torch.nn.Linear(8, 4), Counting(4), None)


def test_weights_are_held_until_they_change(monkeypatch, layer):
    monkeypatch.setattr(Counting, "calls", 0)
    values, optimizer = torch.randn(3, 8), torch.optim.SGD(layer.parameters(), lr=0.5)

    def checked(calls: int) -> None:
        """The layer's output is right, after so many quantizations."""
        assert torch.equal(layer(values), F.linear(values, Uniform(4)(layer.weight), layer.bias))
        assert Counting.calls == calls

    with held.weights_held():
        checked(1)
        checked(1)
        with torch.no_grad(), torch.autocast("cpu", BFLOAT16):
            layer(values)
            layer(values)
        assert Counting.calls == 2, "codes are not values"
        checked(3)
        layer(values).square().sum().backward()
        optimizer.step()
        checked(4)
        layer.load_state_dict({name: tensor + 1 for name, tensor in layer.state_dict().items()})
        checked(5)
        layer.weight.data.mul_(2)
        held.forget_weights()
        checked(6)
        layer.double().float()
        checked(7)
        with held.weights_held():
            checked(7)
            layer.weight.data.mul_(2)
            held.forget_weights()
        checked(8)
        copied = copy.deepcopy(layer)
        assert torch.equal(copied(values), layer(values))
    layer.weight.data.mul_(2)
    checked(10)
    checked(11)


def test_a_weight_at_a_freed_address_is_another_weight(layer):
    values = torch.randn(3, 8)
    with held.weights_held():
        for _ in range(50):
            layer(values)
            layer.weight.data = torch.empty(0)  # what `module.to` does: the old memory is free for the new values
            layer.weight.data = torch.randn(4, 8)
            assert torch.equal(layer(values), F.linear(values, Uniform(4)(layer.weight), layer.bias))


def test_a_held_weight_has_its_gradient(layer):
    values = torch.randn(3, 8)
    layer(values).square().sum().backward()
    expected = layer.weight.grad.clone()
    with held.weights_held():
        for _ in range(2):
            layer.zero_grad()
            layer(values).square().sum().backward()
            assert torch.equal(layer.weight.grad, expected)


def test_inference_mode_leaves_nothing_that_training_would_trip_over(layer):
    values = torch.randn(3, 8)
    quantized = QuantLinear.from_float(torch.nn.Linear(8, 4), Ternary(), Uniform())
    with held.weights_held():
        with torch.inference_mode():
            quantized(values)
        quantized(values).sum().backward()
        quantized(values.clone().requires_grad_()).sum().backward()
    assert quantized.weight.grad is not None


def test_an_input_carries_nothing_away(tmp_path):
    values = torch.randn(3, 8)
    products.linear(values, torch.randn(4, 8), None, Uniform(), None)
    assert not vars(values)
    torch.save(values, tmp_path / "values.pt")
    assert torch.equal(torch.load(tmp_path / "values.pt"), values)


def test_a_prepared_layer_is_exported_whole():
    """A look at a value would break the graph; the exported program clips always and gives the same numbers."""
    layer = QuantLinear.from_float(torch.nn.Linear(8, 4), Ternary(), Uniform()).eval()
    values = torch.randn(3, 8)
    with torch.no_grad():
        program = torch.export.export(layer, (values,)).module()
        for example in (values, 5 * values, torch.zeros_like(values)):
            torch.testing.assert_close(program(example), layer(example), rtol=1e-6, atol=1e-6)


def test_float64_and_tensors_without_values_are_left_to_autocast():
    layer = QuantLinear.from_float(torch.nn.Linear(8, 4), Ternary(), Uniform())
    assert layer.to("meta")(torch.randn(3, 8, device="meta")).shape == (3, 4)
    double = QuantLinear.from_float(torch.nn.Linear(8, 4).double(), Ternary(), Uniform())
    values = torch.randn(3, 8, dtype=torch.float64)
    expected = double(values)
    with torch.autocast("cpu", BFLOAT16):
        assert torch.equal(double(values), expected)
