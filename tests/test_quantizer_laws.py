"""Every quantizer of the table against its formula as a loop over floats, and the laws it obeys, one column a law.

A law that is false for a quantizer has a counter-example at the end of this file.
"""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch

from test_quant import groups
from tritune.modeling.quantization import SERVED_WEIGHTS, WITH_CLIP
from tritune.quant import (
    QUANTIZERS,
    Calibrated,
    Granularity,
    Learned,
    Quantizer,
    StoredCodes,
    arguments_of,
    make_quantizer,
)

CLIP = 2.5


@dataclass(frozen=True)
class Laws:
    """Which laws hold: quantizing twice changes nothing; 2x gives twice the result; 0 stays 0; codes of `bits` bits."""

    idempotent: bool = True
    scale_equivariant: bool = True
    keeps_zeros: bool = True
    packable: bool = True


LAWS = {
    "twn": Laws(),
    "least_squares": Laws(),
    "uniform": Laws(),
    "min_max": Laws(keeps_zeros=False, packable=False),
    "moving_min_max": Laws(keeps_zeros=False, packable=False),
    "clipped_uniform": Laws(idempotent=False, packable=False),
    "lsq": Laws(),
    "pact": Laws(packable=False),  # it serves no weights
    "dorefa": Laws(idempotent=False, scale_equivariant=False, keeps_zeros=False),
    "quaternary": Laws(idempotent=False, keeps_zeros=False),
    "bwn": Laws(keeps_zeros=False),
    "elastic_binary": Laws(keeps_zeros=False),
    "seq": Laws(keeps_zeros=False),
}
CASES = {
    f"{name}-{bits}-{granularity}": (name, bits, Granularity(granularity))
    for name, kind in QUANTIZERS.items()
    for bits in sorted({*kind.weight_bits, *kind.activation_bits} & {1, 2, 3, 4, 8})
    for granularity in ("tensor", "row", "token")
    if granularity == "tensor"
    or (kind.weight_bits if granularity == "row" else kind.activation_bits and not issubclass(kind, Calibrated))
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def where_it_holds(law: str):
    """The cases for which a column of `LAWS` is true."""
    holding = {key: case for key, case in CASES.items() if getattr(LAWS[case[0]], law)}
    return pytest.mark.parametrize("case", holding.values(), ids=holding)


def test_what_is_known_without_the_table_is_so():
    assert all(bits in QUANTIZERS[name].weight_bits for name, bits in SERVED_WEIGHTS)
    assert all("clip" in arguments_of(name) for name in WITH_CLIP)


def test_the_table_is_whole():
    assert set(LAWS) == set(QUANTIZERS)


def sample(spread=1.5, shape=(6, 10)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * spread


def float64(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def started(case, values: torch.Tensor) -> Quantizer:
    """The quantizer of a case; what it learns starts from `values`."""
    name, bits, granularity = case
    quantizer = make_quantizer(
        name,
        bits=bits,
        granularity=granularity,
        clip=CLIP,
        threshold_factor=0.7,
        groups=(len(values), 1) if granularity is Granularity.ROW else (),
        sharing=10 if granularity is Granularity.ROW else values.numel(),
    )
    if isinstance(quantizer, Calibrated):
        quantizer.to(values.dtype).reset()
        quantizer.calibrate(values)
    return quantizer


def clipped(values: list[float]) -> list[float]:
    return [max(-CLIP, min(CLIP, v)) for v in values]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def levels(bits: int) -> int:
    return 2 ** (bits - 1) - 1


def sign(value: float) -> float:
    return 1.0 if value >= 0 else -1.0


def nearest(value: float, low: float, high: float) -> float:
    return min(max(round(value), low), high)


def twn(x, bits, learned):
    x, threshold = clipped(x), 0.7 * mean([abs(v) for v in clipped(x)])
    scale = mean([abs(v) for v in x if abs(v) > threshold])
    return [sign(v) * scale * (abs(v) > threshold) for v in x]


def least_squares(x, bits, learned):
    x = clipped(x)
    ranked = sorted((abs(v) for v in x), reverse=True)
    best = max(range(1, len(x) + 1), key=lambda k: sum(ranked[:k]) ** 2 / k)
    return [sign(v) * mean(ranked[:best]) * (abs(v) >= ranked[best - 1]) for v in x]


def uniform(x, bits, learned):
    x = clipped(x)
    scale = max(map(abs, x)) / levels(bits)
    return [round(v / scale) * scale for v in x]


def asymmetric(x, bits, low, high):
    steps = 2**bits - 1
    return [round((min(max(v, low), high) - low) / (high - low) * steps) / steps * (high - low) + low for v in x]


def clipped_uniform(x, bits, learned):
    x, n = clipped(x), 2 ** (bits - 1) - 0.5
    c = mean([abs(v) for v in x if abs(v) > mean([abs(u) for u in x])])
    return [round(max(-c, min(c, v)) / (c / n)) * (c / n) for v in x]


def lsq(x, bits, learned):
    s = learned["scale"]
    return [s * nearest(v / s, -(2 ** (bits - 1)), levels(bits)) for v in x]


def pact(x, bits, learned):
    c = learned["clip"]
    return [nearest(v / c * levels(bits), -levels(bits), levels(bits)) * c / levels(bits) for v in x]


def dorefa(x, bits, learned):
    steps, largest = 2**bits - 1, max(abs(math.tanh(v)) for v in x)
    return [2 * round((math.tanh(v) / (2 * largest) + 0.5) * steps) / steps - 1 for v in x]


def quaternary(x, bits, learned):
    scale = 0.9957 / 2 * math.sqrt(math.pi / 2) * mean([abs(v) for v in clipped(x)])
    return [scale * min((-3, -1, 1, 3), key=lambda code, v=v: abs(v - code * scale)) for v in x]


def bwn(x, bits, learned):
    return [sign(v) * mean([abs(u) for u in clipped(x)]) for v in x]


def elastic_binary(x, bits, learned):
    return [learned["scale"] * sign(v - learned["shift"]) for v in x]


def seq(x, bits, learned):
    c, k = learned["clip"], 2**bits
    halves = [nearest(max(-1, min(1, v / c)) * k / 2 - 0.5, -k // 2, k // 2 - 1) + 0.5 for v in x]
    return [c * half * 2 / k for half in halves]


FORMULAS = {
    "twn": twn,
    "least_squares": least_squares,
    "uniform": uniform,
    "min_max": lambda x, bits, learned: asymmetric(clipped(x), bits, min(clipped(x)), max(clipped(x))),
    "moving_min_max": lambda x, bits, learned: asymmetric(x, bits, learned["low"], learned["high"]),
    "clipped_uniform": clipped_uniform,
    "lsq": lsq,
    "pact": pact,
    "dorefa": dorefa,
    "quaternary": quaternary,
    "bwn": bwn,
    "elastic_binary": elastic_binary,
    "seq": seq,
}


def learned_of(quantizer: Quantizer, group: int) -> dict[str, float]:
    """What a quantizer has learned for one group of values."""
    state = quantizer.state_dict() if isinstance(quantizer, Calibrated) else {}
    return {name: tensor.flatten()[group if tensor.numel() > 1 else 0].item() for name, tensor in state.items()}


def shaken(quantizer: Quantizer) -> Quantizer:
    """With a state as training might leave it: smaller than at the start, so that values lie outside."""
    if isinstance(quantizer, Calibrated):
        for name, tensor in quantizer.state_dict().items():
            tensor.copy_(0.05 * torch.ones_like(tensor) if name == "shift" else 0.6 * tensor)
    return quantizer


def states(case, values: torch.Tensor) -> list[Quantizer]:
    """The quantizer as it starts, and where it learns as training might leave it."""
    quantizer = started(case, values)
    return [quantizer, shaken(started(case, values))] if isinstance(quantizer, Calibrated) else [quantizer]


@every_case
def test_values_are_the_formula(case):
    values = sample()
    for quantizer in states(case, values):
        result = quantizer(values)
        for number, group in enumerate(groups(values.shape, case[2])):
            index = tuple(torch.tensor(group).T)
            expected = FORMULAS[case[0]](values[index].tolist(), case[1], learned_of(quantizer, number))
            torch.testing.assert_close(result[index], float64(expected), rtol=1e-12, atol=1e-12)


STARTS = {
    "lsq": lambda x, bits: {"scale": 2 * mean([abs(v) for v in x]) / math.sqrt(levels(bits))},
    "pact": lambda x, bits: {"clip": max(map(abs, x))},
    "seq": lambda x, bits: {"clip": max(map(abs, x))},
    "elastic_binary": lambda x, bits: {"scale": mean([abs(v) for v in x]), "shift": 0.0},
    "moving_min_max": lambda x, bits: {"low": min(x), "high": max(x), "newest_low": 0.0, "newest_high": 0.0},
}


@pytest.mark.parametrize("case", [case for case in CASES.values() if case[0] in STARTS], ids=str)
def test_learned_numbers_start_where_the_papers_say(case):
    quantizer, values = started(case, sample()), sample()
    for number, group in enumerate(groups(values.shape, case[2])):
        expected = STARTS[case[0]]([values[at].item() for at in group], case[1])
        assert learned_of(quantizer, number) == pytest.approx(expected, rel=1e-12)


@every_case
def test_codes_are_in_range_and_rebuild_the_call(case):
    values = sample()
    quantizer = shaken(started(case, values))
    codes, scale = quantizer.quantize(values)
    assert codes.dtype is torch.int8 and codes.shape == values.shape
    assert set(codes.flatten().tolist()) <= set(quantizer.codes)
    assert quantizer.largest_code == max(map(abs, quantizer.codes))
    torch.testing.assert_close(quantizer.dequantize(codes, scale), quantizer(values), rtol=1e-14, atol=1e-14)
    if not quantizer.has_offset:
        assert scale.gt(0).all() and scale.ndim == values.ndim
        whole, positive, _ = quantizer.integers(values, torch.float32)
        assert torch.equal(whole, codes.float()) and torch.equal(positive, scale)


@every_case
def test_what_can_be_packed_has_no_more_codes_than_its_bits_hold(case):
    quantizer = started(case, sample())
    assert quantizer.packable == LAWS[case[0]].packable
    assert (len(quantizer.codes) <= 2**quantizer.code_bits) and quantizer.bits == case[1]
    assert not quantizer.packable or quantizer.code_bits <= quantizer.bits
    frozen = quantizer.frozen()
    assert (frozen.bits, frozen.granularity, frozen.codes) == (quantizer.bits, quantizer.granularity, quantizer.codes)
    assert isinstance(frozen, StoredCodes) == isinstance(quantizer, Learned)


@where_it_holds("idempotent")
def test_quantizing_twice_changes_nothing(case):
    quantizer = started(case, sample())
    once = quantizer(sample())
    torch.testing.assert_close(quantizer(once), once, rtol=1e-14, atol=1e-14)


@where_it_holds("scale_equivariant")
def test_powers_of_two_pass_through_below_the_clip(case):
    values = sample(spread=0.1)
    for factor in (0.125, 2.0, 4.0):
        assert (values * factor).abs().max() < CLIP
        result = started(case, values * factor)(values * factor)
        torch.testing.assert_close(result, started(case, values)(values) * factor, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("case", [case for case in CASES.values() if "clip" in arguments_of(case[0])], ids=str)
def test_no_clip_is_one_beyond_every_value(case):
    name, bits, granularity = case
    results = []
    for clip in (math.inf, 1e6):
        values = (10 * sample()).requires_grad_()
        quantizer = make_quantizer(name, bits=bits, granularity=granularity, clip=clip, threshold_factor=0.7)
        quantizer(values).square().sum().backward()
        results.append((quantizer(values), values.grad))
    assert values.abs().max() > 2 * CLIP and values.grad.ne(0).any()
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@every_case
def test_zeros_and_zero_rows_stay_finite(case):
    some_zero = sample() * torch.arange(6)[:, None].clamp(max=1)
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    for values, dtype in itertools.product((torch.zeros(6, 10), some_zero), dtypes):
        values = values.detach().to(dtype, copy=True).requires_grad_()
        quantizer = started(case, values.detach().to(torch.promote_types(dtype, torch.float32)))
        result = quantizer(values)
        assert result.dtype is dtype and result.isfinite().all()
        result.float().sum().backward()
        assert values.grad.isfinite().all()
        if isinstance(quantizer, Learned):
            assert all(parameter.grad.isfinite().all() for parameter in quantizer.parameters())
        if LAWS[case[0]].keeps_zeros:
            assert torch.equal(result[values == 0], torch.zeros_like(result[values == 0]))


def inside_the_clip(x, bits, learned):
    return [float(abs(v) < CLIP) for v in x], {}


def lsq_gradient(x, bits, learned):
    s, low, high = learned["scale"], -(2 ** (bits - 1)), levels(bits)
    inside = [low < v / s < high for v in x]
    return [float(i) for i in inside], {
        "scale": [round(v / s) - v / s if i else low if v < 0 else high for v, i in zip(x, inside, strict=True)]
    }


def pact_gradient(x, bits, learned):
    inside = [abs(v) < learned["clip"] for v in x]
    return [float(i) for i in inside], {"clip": [0.0 if i else sign(v) for v, i in zip(x, inside, strict=True)]}


def dorefa_gradient(x, bits, learned):
    largest = max(abs(math.tanh(v)) for v in x)
    return [(1 - math.tanh(v) ** 2) / largest for v in x], {}


def elastic_gradient(x, bits, learned):
    u = [(v - learned["shift"]) / learned["scale"] for v in x]
    return [float(abs(v) < 1) for v in u], {
        "scale": [sign(v) - v * (abs(v) < 1) for v in u],
        "shift": [-float(abs(v) < 1) for v in u],
    }


def seq_gradient(x, bits, learned):
    c, quantized = learned["clip"], seq(x, bits, learned)
    return [float(abs(v / c) < 1) for v in x], {
        "clip": [q / c - v / c * (abs(v / c) < 1) for v, q in zip(x, quantized, strict=True)]
    }


def moving_gradient(x, bits, learned):
    return [float(learned["low"] <= v <= learned["high"]) for v in x], {}


GRADIENTS = {
    "lsq": lsq_gradient,
    "pact": pact_gradient,
    "dorefa": dorefa_gradient,
    "elastic_binary": elastic_gradient,
    "seq": seq_gradient,
    "moving_min_max": moving_gradient,
}


def gradient_scale(name: str, bits: int, sharing: int) -> dict[str, float]:
    lsqs = 1 / math.sqrt(sharing * max(levels(bits), 1))
    return {"clip": 1.0 if name == "pact" else lsqs, "scale": lsqs, "shift": 1.0}


@every_case
def test_gradients_are_their_formula(case):
    formula, grad = GRADIENTS.get(case[0], inside_the_clip), sample().flip(0)
    assert (sample().abs() > CLIP).any()
    for quantizer in states(case, sample()):
        values = sample().requires_grad_()
        quantizer(values).backward(grad)
        for number, group in enumerate(groups(values.shape, case[2])):
            index = tuple(torch.tensor(group).T)
            factors, of_learned = formula(values[index].tolist(), case[1], learned_of(quantizer, number))
            torch.testing.assert_close(values.grad[index], grad[index] * float64(factors), rtol=1e-12, atol=1e-12)
            for name, per_value in of_learned.items():
                own = getattr(quantizer, name).grad.flatten()
                total = (grad[index] * float64(per_value)).sum() * gradient_scale(*case[:2], len(group))[name]
                torch.testing.assert_close(own[number if own.numel() > 1 else 0], total, rtol=1e-10, atol=1e-10)


@every_case
def test_second_derivatives_go_through(case):
    values = sample().requires_grad_()
    quantizer = shaken(started(case, values.detach()))
    (grad,) = torch.autograd.grad(quantizer(values).pow(3).sum(), values, create_graph=True)
    (product,) = torch.autograd.grad(grad, values, sample().flip(1))
    assert product.isfinite().all() and product.any()


@pytest.mark.parametrize("name", [name for name, kind in QUANTIZERS.items() if issubclass(kind, Learned)])
def test_a_scale_below_zero_counts_as_tiny_and_finds_back(name):
    kind = QUANTIZERS[name]
    case = (name, min(kind.weight_bits or kind.activation_bits), Granularity.TENSOR)
    quantizer = started(case, sample())
    learned = getattr(quantizer, quantizer.learns)
    learned.data.fill_(-1.0)
    quantizer(sample()).backward(sample().sign())  # a gradient that wants values to shrink in size ...
    assert quantizer(sample()).abs().max() < 1e-6 and learned.grad.isfinite() and learned.grad > 0
    learned.grad = None
    quantizer(sample()).backward(-sample().sign())  # ... and one that wants them to grow
    assert learned.grad < 0


def test_a_quantizer_takes_the_settings_it_uses():
    assert arguments_of("twn") == {"granularity", "clip", "threshold_factor"}
    assert arguments_of("least_squares") == {"granularity", "clip"}
    assert arguments_of("dorefa") == {"bits", "granularity"}
    assert arguments_of("lsq") == {"bits", "granularity", "groups", "sharing"}


# Where a law is false.


def test_clipped_uniform_is_not_idempotent():
    quantizer = started(("clipped_uniform", 4, Granularity.TENSOR), sample())
    once = quantizer(sample())
    assert not torch.allclose(quantizer(once), once, rtol=1e-3)


def test_clipped_uniform_has_17_levels():
    quantizer = started(("clipped_uniform", 4, Granularity.TENSOR), sample())
    # What is above the mean are the 7.5s alone: 7.5 is the clip, and the step is 1 (here in sixteenths).
    values = torch.cat([torch.arange(-7.0, 8.0), torch.full((400,), 7.5), torch.full((400,), -7.5)]) / 16
    assert quantizer.quantize(values)[0].unique().tolist() == list(range(-8, 9))
    assert quantizer.code_bits == 5 and not quantizer.packable


def test_dorefa_is_not_idempotent():
    quantizer = started(("dorefa", 4, Granularity.TENSOR), sample())
    value = torch.tensor([1.0, 11 / 15])  # both are levels, but tanh(11/15) / tanh(1) is nearer to 13/15
    assert torch.allclose(quantizer(value), torch.tensor([1.0, 13 / 15]))


def test_quaternary_is_not_idempotent():
    quantizer = started(("quaternary", 2, Granularity.TENSOR), sample())
    values = float64([1.0, 0.1])  # levels of 0.624 * 0.55 are 0.343 and 1.030, of which the mean is larger
    once = quantizer(values)
    assert torch.allclose(once, float64([1.02957, 0.34319]), atol=1e-3)
    assert torch.allclose(quantizer(once), float64([1.28494, 0.42831]), atol=1e-3)


def test_four_levels_fit_normal_values_as_well_as_max_says():
    """0.1188 of the variance (Max 1960, table II), the best three levels 0.1902."""
    values = torch.randn(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, expected in (("quaternary", 0.1188), ("least_squares", 0.1902)):
        quantizer = make_quantizer(name, clip=math.inf)
        assert (quantizer(values) - values).square().mean().item() == pytest.approx(expected, rel=0.01)


def test_dorefa_forgets_the_size():
    quantizer = started(("dorefa", 2, Granularity.TENSOR), sample())
    values = torch.tensor([0.001, -0.001])
    assert quantizer(values).tolist() == quantizer(2 * values).tolist() == [1.0, -1.0]


@pytest.mark.parametrize(
    ("name", "bits", "expected"),
    [
        ("bwn", 1, 0.5),
        ("elastic_binary", 1, 0.5),
        ("seq", 2, 0.25),
        ("dorefa", 2, 1 / 3),
        ("quaternary", 2, 0.31198122),
    ],
)
def test_without_a_code_for_it_zero_becomes_the_smallest_level(name, bits, expected):
    values = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert started((name, bits, Granularity.TENSOR), values)(values)[0].item() == pytest.approx(expected, rel=1e-7)


def test_an_asymmetric_range_need_not_have_a_level_at_zero():
    values = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
    for name in ("min_max", "moving_min_max"):
        assert started((name, 4, Granularity.TENSOR), values)(values)[1].abs().item() == pytest.approx(1 / 15)


def test_an_elastic_shift_beyond_the_scale_is_not_idempotent():
    quantizer = started(("elastic_binary", 1, Granularity.TENSOR), sample())
    quantizer.shift.data.fill_(-10.0)
    values = torch.tensor([-11.0], dtype=torch.float64)
    assert quantizer(values) < 0 < quantizer(quantizer(values))


def test_a_step_that_is_not_scaled_along_is_not_equivariant():
    quantizer = started(("lsq", 4, Granularity.TENSOR), sample())
    assert not torch.allclose(quantizer(2 * sample()), 2 * quantizer(sample()), rtol=0.1)


def test_a_learned_scale_does_not_hear_of_nan():
    """A dynamic scale spoils its whole group; here one value stays one value."""
    values = sample()
    quantizer = started(("lsq", 4, Granularity.TENSOR), values)
    values[0, 0] = torch.nan
    assert quantizer(values).isnan().sum() == 1


def test_a_moving_range_follows_the_training_and_stands_still_in_evaluation():
    quantizer = started(("moving_min_max", 8, Granularity.TENSOR), sample())
    low, high = quantizer.low.item(), quantizer.high.item()
    values = (2 * sample()).requires_grad_()
    quantizer.eval()(values)
    quantizer.advance()
    assert (quantizer.low, quantizer.high) == (low, high)
    quantizer.train()
    for _ in range(2):  # the second time as gradient checkpointing does
        quantizer(values)
    assert (quantizer.low, quantizer.high) == (low, high)
    quantizer.advance()
    expected = [0.99 * one + 0.01 * 2 * one for one in (low, high)]
    assert [quantizer.low.item(), quantizer.high.item()] == pytest.approx(expected, rel=1e-6)
    quantizer.advance()
    assert [quantizer.low.item(), quantizer.high.item()] == pytest.approx(expected, rel=1e-6)


def test_codes_of_packed_weights_come_back():
    quantizer = started(("seq", 2, Granularity.ROW), sample())
    codes, scale = quantizer.quantize(sample())
    frozen = quantizer.frozen()
    assert torch.equal(frozen.dequantize(codes, scale), quantizer(sample()))
    assert frozen == started(("seq", 2, Granularity.ROW), 2 * sample()).frozen()
    with pytest.raises(TypeError):
        frozen.quantize(sample())


def test_every_pair_of_names_is_another_class():
    for one, other in itertools.combinations(QUANTIZERS.values(), 2):
        assert one is not other
