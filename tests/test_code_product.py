"""`code_product`: one step of autograd for two operands of codes; against float64, result by result."""

import pytest
import torch

from tritune.compute import code_product as module
from tritune.compute import products
from tritune.compute.code_product import Coded, code_product
from tritune.errors import TrituneError
from tritune.quant import Granularity, LearnedStep, MinMax, Ternary, Uniform
from tritune.quant.ste import surely_inside

BFLOAT16 = torch.bfloat16
# Half a unit in the last of bfloat16's 8 bits; and what float32 may lose before that.
ONE_ROUNDING = 2**-8 + 2**-20

# Shapes of left, right and whether there is a bias.
SHAPES = {
    "linear": ((3, 5, 64), (48, 64), True),
    "linear without bias": ((7, 64), (48, 64), False),
    "one vector": ((64,), (48, 64), True),
    "one token, one feature": ((1, 1, 1), (1, 1), True),
    "attention": ((2, 3, 5, 16), (2, 3, 7, 16), False),
    "one matrix": ((4, 9), (4, 9), False),
}


def coded(values: torch.Tensor, quantizer: Ternary | Uniform) -> Coded:
    codes, scale, peak = quantizer.integers(values, BFLOAT16)
    return Coded(values, codes, scale, None if surely_inside(peak, quantizer.clip) else quantizer.clip)


def example(name: str) -> tuple[Coded, Coded, torch.Tensor | None]:
    """Operands that are clipped here and there, each with a row of zeros."""
    left, right, has_bias = SHAPES[name]
    values = [2 * torch.randn(shape) for shape in (left, right)]
    for tensor in values:
        if tensor.numel() > 64:
            tensor.view(-1, tensor.shape[-1])[0] = 0
    latent = [tensor.requires_grad_() for tensor in values]
    bias = torch.randn(right[0], requires_grad=True) if has_bias else None
    return coded(latent[0], Uniform(8)), coded(latent[1], Ternary() if len(right) == 2 else Uniform(8)), bias


def exact(operand: Coded) -> torch.Tensor:
    return operand.codes.double() * operand.scale.double().view(())


@pytest.fixture(params=["numbers", "tensors"])
def scales(request, monkeypatch):
    """Scales as numbers, and as a GPU has them."""
    if request.param == "tensors":
        monkeypatch.setattr(module, "_number", lambda scale: scale.view(1))
    return request.param


@pytest.mark.parametrize("name", SHAPES)
def test_the_result_and_every_gradient_against_float64(name, scales):
    left, right, bias = example(name)
    output = code_product(left, right, bias, factor=0.25)
    wide = [exact(operand).requires_grad_() for operand in (left, right)]
    plain = 0.25 * wide[0] @ wide[1].mT
    expected = plain if bias is None else plain + bias.detach().to(BFLOAT16)
    assert output.dtype is BFLOAT16 and output.shape == expected.shape
    roundings = 1 if scales == "numbers" else 2
    largest = plain.abs() + (0 if bias is None else bias.detach().abs())
    assert ((output.double() - expected).abs() <= roundings * ONE_ROUNDING * largest).all()
    if scales == "numbers":
        assert ((output.double() - expected).abs() <= ONE_ROUNDING * expected.abs() + 2**-20 * largest).all()

    grad = torch.randn_like(output)
    output.backward(grad)
    expected.backward(grad.double())
    magnitudes = [tensor.detach().abs().requires_grad_() for tensor in wide]
    (0.25 * magnitudes[0] @ magnitudes[1].mT).backward(grad.double().abs())
    for operand, value, magnitude in zip((left, right), wide, magnitudes, strict=True):
        inside = (operand.latent.detach().abs() < 2.5).double()
        error = (operand.latent.grad.double() - inside * value.grad).abs()
        assert operand.latent.grad.dtype is torch.float32
        assert (error <= roundings * ONE_ROUNDING * value.grad.abs() + 2**-20 * magnitude.grad).all()
    if bias is not None:
        rows = grad.double().reshape(-1, len(bias))
        assert ((bias.grad.double() - rows.sum(0)).abs() <= ONE_ROUNDING * rows.abs().sum(0)).all()


CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_scale_keeps_its_precision_beside_bfloat16(device, scales):
    """Rounded to bfloat16 it would be 1, and everything 255."""
    scale = torch.tensor([[1 + 2**-8 - 2**-12]], device=device)
    latents = [torch.ones(255, 255, device=device, requires_grad=True) for _ in range(2)]
    product = code_product(*(Coded(latent, latent.detach().to(BFLOAT16), scale) for latent in latents))
    product.sum().backward()
    for found in (product, latents[0].grad, latents[1].grad):
        assert torch.equal(found.cpu().float(), torch.full((255, 255), 256.0))


@pytest.mark.parametrize("side", [0, 1])
def test_codes_with_a_graph_of_their_own_get_their_gradient(side, scales):
    """That of the values times the scale; everything else stays as it is."""
    left, right, bias = example("linear")
    pair = [left, right]
    codes = pair[side].codes.clone().requires_grad_()
    pair[side] = Coded(codes, codes.detach(), pair[side].scale, latent_is_codes=True)
    output = code_product(*pair, bias)
    assert torch.equal(output, code_product(left, right, bias))
    grad = torch.randn_like(output)
    output.backward(grad)
    wide = [exact(operand).requires_grad_() for operand in (left, right)]
    magnitudes = [tensor.detach().abs().requires_grad_() for tensor in wide]
    (wide[0] @ wide[1].mT).backward(grad.double())
    (magnitudes[0] @ magnitudes[1].mT).backward(grad.double().abs())
    scale = pair[side].scale.double().view(())
    error = (codes.grad.double() - scale * wide[side].grad).abs()
    roundings = 1 if scales == "numbers" else 2
    bound = roundings * ONE_ROUNDING * wide[side].grad.abs() + 2**-20 * magnitudes[side].grad
    assert codes.grad.dtype is BFLOAT16 and (error <= scale * bound).all()
    other = (left, right)[1 - side].latent
    assert other.grad is not None and codes.grad.shape == pair[side].codes.shape


def kept_by(*operands, bias: torch.Tensor | None = None) -> tuple[torch.Tensor, list[int]]:
    """A product, and how many elements of what autograd keeps for it."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        output = code_product(*operands, bias)
    return output, sorted(sizes)


@pytest.mark.parametrize("wanted", ["left", "right", "bias"])
def test_only_wanted_gradients_are_computed_and_only_what_they_need_is_kept(monkeypatch, wanted):
    left, right, bias = example("linear")  # 15 x 64 and 48 x 64, both clipped
    tensors = {"left": left.latent, "right": right.latent, "bias": bias}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name == wanted)
    output, kept = kept_by(left, right, bias=bias)
    rows, weights = left.codes.numel(), right.codes.numel()
    assert kept == {"left": [rows, weights], "right": [rows, weights], "bias": []}[wanted]
    calls = []
    monkeypatch.setattr(module, "_product", lambda *args, own=module._product: calls.append(args) or own(*args))
    output.sum().backward()
    assert len(calls) == (wanted != "bias")
    assert [name for name, tensor in tensors.items() if tensor.grad is not None] == [wanted]


def test_nothing_latent_is_kept_where_nothing_was_clipped():
    def kept(value: float) -> list[int]:
        values, weight = value * torch.ones(5, 64), torch.full((48, 64), 0.1)
        return kept_by(coded(values.requires_grad_(), Uniform(8)), coded(weight.requires_grad_(), Ternary()))[1]

    assert kept(1.0) == [5 * 64, 48 * 64]
    assert kept(3.0) == [5 * 64, 5 * 64, 48 * 64]


def test_what_wants_no_gradient_may_change_before_the_backward_pass():
    left, right, _ = example("linear")
    frozen = right.latent.requires_grad_(False)
    output = code_product(left, right)
    frozen.mul_(2)
    output.sum().backward()
    with torch.inference_mode():
        values = 3 * torch.randn(5, 64)
    code_product(coded(values, Uniform(8)), example("linear")[1]).sum().backward()


@pytest.mark.parametrize("name", SHAPES)
def test_a_result_may_be_changed_in_place(name, scales):
    left, right, bias = example(name)
    code_product(left, right, bias).mul_(2).sum().backward()
    doubled = left.latent.grad.clone()
    left.latent.grad = None
    (2 * code_product(left, right, bias)).sum().backward()
    assert torch.equal(left.latent.grad, doubled)


def test_a_second_derivative_is_refused():
    """Silently it would be wrong: codes are constants of the first one."""
    left, right, bias = example("linear")
    loss = code_product(left, right, bias).float().square().sum()
    with pytest.raises(TrituneError, match="no second derivative; use the model in float32"):
        torch.autograd.grad(loss, left.latent, create_graph=True)


@torch.no_grad()
def test_a_traced_product_is_the_separate_steps():
    """Each of them rounds: product, scale, bias."""
    values, weight, bias = torch.randn(5, 64), torch.randn(48, 64), torch.randn(48)

    def product(given: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", BFLOAT16):
            return products.linear(given, weight, bias, Uniform(8), Ternary())

    def layer(given: torch.Tensor) -> torch.Tensor:
        return product(given).float()

    traced, plain = torch.jit.trace(layer, values, check_trace=False)(values), layer(values)
    largest = (plain - bias).abs() + bias.abs() + plain.abs()
    assert ((traced - plain).abs() <= 3 * ONE_ROUNDING * largest).all()


@pytest.mark.parametrize(
    ("of_input", "of_weight", "taken"),
    [
        (Uniform(8), Ternary(), True),
        (Uniform(8), Uniform(4), True),
        (None, Ternary(), False),
        (Uniform(8), None, False),
        (Uniform(8, Granularity.TOKEN), Ternary(), False),
        (Uniform(8), Ternary(Granularity.ROW), False),
        (LearnedStep(8), Ternary(), True),
        (MinMax(8), Ternary(), False),
    ],
)
def test_it_serves_bfloat16_and_one_scale_per_operand(monkeypatch, of_input, of_weight, taken):
    calls = []
    monkeypatch.setattr(products, "code_product", lambda *args: calls.append(args) or code_product(*args))
    values, weight = torch.randn(3, 8), torch.randn(4, 8)
    products.linear(values, weight, None, of_input, of_weight)
    assert not calls, "float32 is computed as it was published"
    with torch.autocast("cpu", BFLOAT16):
        products.linear(values, weight, None, of_input, of_weight)
    assert bool(calls) == taken
