"""Fused kernels: the plain path's numbers, where they stand in for it, and what happens without the library."""

import json
import warnings
from contextlib import contextmanager

import pytest
import torch

from tritune.compute import kernels, products
from tritune.engine import binding
from tritune.errors import TrituneError
from tritune.quant import Granularity, LeastSquaresTernary, Quantizer, Ternary, Uniform
from tritune.training.resume import StopOnSignal
from workspace import make_workspace, train_arguments

BFLOAT16 = torch.bfloat16

UNIFORM = {
    "no clip": Uniform(8, clip=torch.inf),
    "tiny clip": Uniform(8, clip=1e-35),
    "8 bits": Uniform(8),
    "4 bits": Uniform(4),
    "2 bits": Uniform(2),
    "narrow": Uniform(8, clip=0.75),
}
TERNARY = {
    "twn": Ternary(),
    "narrow": Ternary(clip=0.75),
    "low": Ternary(threshold_factor=0.3),
    "no clip": Ternary(clip=torch.inf),
}


def values() -> dict[str, torch.Tensor]:
    """What the kernels are tried on; 4096 values are a block, 32768 a task of a thread."""
    normal, wide = torch.randn(3, 5, 7), 3 * torch.randn(64, 1030)
    ties = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 127.0]]) / 64
    some_nan, some_inf = normal.clone(), normal.clone()
    some_nan[1, 2, 3], some_inf[0, 0, 0] = torch.nan, -torch.inf
    return {
        "normal": normal,
        "clipped": wide,
        "one value": torch.tensor([-0.3]),
        "no dimensions": torch.tensor(0.3),
        "a block": torch.randn(4096),
        "a tail": torch.randn(4097),
        "odd": torch.randn(17, 1001),
        "zeros": torch.zeros(4, 5),
        "a row of zeros": normal * torch.arange(5).view(5, 1),
        "negative zeros": -torch.zeros(3),
        "one magnitude": torch.tensor([0.5, -0.5, 0.5]),
        "ties": ties,
        "tiny": 1e-38 * normal,
        "subnormal": 1e-42 * normal,
        "huge": 1e30 * normal,
        "a NaN": some_nan,
        "an infinity": some_inf,
        "all NaN": torch.full((5,), torch.nan),
        "heads": torch.randn(2, 9, 3, 4).transpose(1, 2),
        "a column": wide[:, 3],
        "expanded": normal[:1].expand(4, 5, 7),
        "bfloat16": wide.to(BFLOAT16),
        "bfloat16 heads": torch.randn(2, 900, 3, 4).transpose(1, 2).to(BFLOAT16),
        "bfloat16 NaN": some_nan.to(BFLOAT16),
    }


VALUES = list(values())
pytestmark = pytest.mark.native


@pytest.fixture(autouse=True)
def in_use():
    with kernels.fused_kernels():
        yield


@contextmanager
def not_in_use():
    token = kernels._in_use.set(False)
    yield
    kernels._in_use.reset(token)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """For comparisons in which NaN is NaN."""
    return torch.nan_to_num(tensor.float(), nan=1234.5)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("quantizer", UNIFORM.values(), ids=UNIFORM)
def test_uniform_is_the_plain_path_bit_for_bit(name, quantizer):
    given = values()[name]
    for found, expected in zip(
        kernels.integers(quantizer, given, BFLOAT16), quantizer.integers(given, BFLOAT16), strict=True
    ):
        assert found.dtype is expected.dtype and found.shape == expected.shape
        assert torch.equal(bits(found), bits(expected))


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("quantizer", TERNARY.values(), ids=TERNARY)
def test_ternary_is_the_plain_path_up_to_the_order_of_its_sums(name, quantizer):
    """A code may differ only where the magnitude is the threshold up to a millionth; and so, then, may the scale."""
    given = values()[name]
    codes, scale, peak = kernels.integers(quantizer, given, BFLOAT16)
    expected_codes, expected_scale, expected_peak = quantizer.integers(given, BFLOAT16)
    assert codes.dtype is BFLOAT16 and scale.dtype is peak.dtype is torch.float32
    assert codes.shape == given.shape and scale.shape == expected_scale.shape and peak.shape == expected_peak.shape
    assert torch.equal(bits(peak), bits(expected_peak))
    if given.isnan().any():
        assert scale.isnan() and expected_scale.isnan()
        return
    magnitude = given.double().abs().clamp(max=quantizer.clip)
    threshold = quantizer.threshold_factor * magnitude.mean()
    differ = codes != expected_codes
    assert ((magnitude - threshold).abs()[differ] <= 1e-6 * threshold).all()
    torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)


def test_ternary_against_float64():
    for given in (torch.randn(64, 1030), 0.02 * torch.randn(300, 1000), torch.rand(5, 40000)):
        codes, scale, _ = kernels.integers(Ternary(), given, BFLOAT16)
        magnitude = given.double().abs().clamp(max=2.5)
        kept = magnitude > 0.7 * magnitude.mean()
        assert torch.equal(codes.double(), kept * given.double().sign())
        assert scale.item() == pytest.approx(magnitude[kept].mean().item(), rel=1e-6)


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    weight, found = torch.randn(1000, 1000), []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            found.append([kernels.integers(q, weight, BFLOAT16) for q in (Ternary(), Uniform())])
        monkeypatch.setattr(kernels, "_team", lambda: None)  # as where torch has no OpenMP
        found.append([kernels.integers(q, weight, BFLOAT16) for q in (Ternary(), Uniform())])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for results, expected in zip(other, found[0], strict=True):
            assert all(torch.equal(*pair) for pair in zip(results, expected, strict=True))


class OwnCodes(Uniform):
    def _encode(self, values):
        codes, unit, peak = super()._encode(values)
        return -codes, unit, peak


class OwnTensor(torch.Tensor):
    """Of such, a FakeTensor is one, the values need not lie at an address."""


@pytest.mark.parametrize(
    ("quantizer", "given", "dtype"),
    [
        (LeastSquaresTernary(), torch.randn(4, 8), BFLOAT16),
        (OwnCodes(), torch.randn(4, 8), BFLOAT16),
        (Ternary(Granularity.ROW), torch.randn(4, 8), BFLOAT16),
        (Uniform(8, Granularity.TOKEN), torch.randn(4, 8), BFLOAT16),
        (Uniform(), torch.randn(4, 8), torch.float32),
        (Uniform(), torch.randn(4, 8, dtype=torch.float64), BFLOAT16),
        (Uniform(), torch.randn(4, 8).half(), BFLOAT16),
        (Uniform(), torch.randn(4, 8, device="meta"), BFLOAT16),
        (Uniform(), torch.randn(4, 8).as_subclass(OwnTensor), BFLOAT16),
    ],
)
def test_everything_else_takes_the_plain_path(monkeypatch, quantizer, given, dtype):
    monkeypatch.setattr(kernels, "_by_kernel", "would not be callable")
    for found, expected in zip(
        kernels.integers(quantizer, given, dtype), quantizer.integers(given, dtype), strict=True
    ):
        assert found.shape == expected.shape and (found.is_meta or torch.equal(found, expected))


def test_they_are_in_use_within_the_context_alone(calls):
    given, weight = torch.randn(3, 8), torch.randn(4, 8)

    def product() -> torch.Tensor:
        with torch.autocast("cpu", BFLOAT16):
            return products.linear(given.clone(), weight, None, Uniform(), Ternary())

    plain = product()
    assert not calls
    with kernels.fused_kernels():
        torch.testing.assert_close(product(), plain)
        with kernels.fused_kernels():
            pass
        products.linear(given.clone(), weight, None, Uniform(), Ternary())
    assert calls == [Uniform, Ternary], "float32 is computed as it was published"
    product()
    assert len(calls) == 2


def test_gradients_are_those_of_the_plain_path():
    """A scale that differs in its last bit may round another way where bfloat16 does."""
    found = {}
    for name in ("fused", "plain"):
        torch.manual_seed(0)
        given, weight = (2 * torch.randn(3, 64)).requires_grad_(), torch.randn(48, 64, requires_grad=True)
        with torch.autocast("cpu", BFLOAT16), kernels.fused_kernels() if name == "fused" else not_in_use():
            products.linear(given, weight, None, Uniform(), Ternary()).square().sum().backward()
        found[name] = given.grad, weight.grad
    for own, plain in zip(found["fused"], found["plain"], strict=True):
        assert own.dtype is torch.float32 and ((own == 0) == (plain == 0)).all()
        torch.testing.assert_close(own, plain, rtol=2**-6, atol=2**-7 * plain.abs().max().item())


def forget_attempts() -> None:
    binding._found.cache_clear()
    kernels.kernels_available.cache_clear()


@pytest.fixture
def not_compiled(monkeypatch, tmp_path):
    """tritune as a pip that found no compiler installs it."""
    monkeypatch.setattr(binding, "LIBRARY", tmp_path / "none.so")
    monkeypatch.setattr(binding, "NOTE", tmp_path / "note.txt")
    binding.NOTE.write_text("no C++ compiler was found (c++)\n")
    kernels._in_use.set(False)  # until the fixture of this file takes it back
    forget_attempts()
    yield
    forget_attempts()


NOT_COMPILED = r"fused kernels: the engine was not compiled: no C\+\+ compiler was found \(c\+\+\); install"


def test_without_the_library_they_are_refused_in_one_line(not_compiled):
    with pytest.raises(TrituneError, match=f"^{NOT_COMPILED}") as error, kernels.fused_kernels():
        pass
    assert "\n" not in str(error.value) and not kernels._in_use.get()


def test_that_there_are_none_is_said_once(not_compiled):
    with pytest.warns(UserWarning, match=f"{NOT_COMPILED} .* goes on without them"):
        assert not kernels.kernels_available()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not kernels.kernels_available()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("kernels"))


def settings(*more: str) -> list[str]:
    return [part for key in ("max_steps=2", "eval_steps=2", *more) for part in ("--set", key)]


@pytest.fixture
def calls(monkeypatch):
    """The quantizers whose kernels were called."""
    found, original = [], kernels._by_kernel

    def kernel(quantizer: Quantizer, given: torch.Tensor):
        found.append(type(quantizer))
        return original(quantizer, given)

    monkeypatch.setattr(kernels, "_by_kernel", kernel)
    kernels._in_use.set(False)  # until the fixture of this file takes it back
    return found


@pytest.mark.parametrize(
    ("more", "taken"),
    [
        (("bf16=true",), True),
        (("bf16=true", "fused_kernels=true"), True),
        (("bf16=true", "fused_kernels=false"), False),
        (("bf16=true", "weight_granularity=row", "activation_granularity=token"), False),
        ((), None),
    ],
)
def test_a_training_takes_them(calls, cli, workspace, more, taken):
    output = workspace / ("with " + " ".join(more))
    code, _, err = cli(*train_arguments(workspace, output, *settings(*more)))
    assert code == 0, err
    assert set(calls) == ({Uniform, Ternary} if taken else set())
    assert json.loads((output / "metrics.json").read_text()).get("fused_kernels") is taken
    assert not kernels._in_use.get()


def test_without_them_training_goes_on_unless_they_were_asked_for(not_compiled, cli, workspace):
    with pytest.warns(UserWarning, match="fused kernels: .* goes on without them"):
        code, _, err = cli(*train_arguments(workspace, workspace / "plain", *settings("bf16=true")))
    assert code == 0, err
    assert json.loads((workspace / "plain" / "metrics.json").read_text())["fused_kernels"] is False
    wanted = train_arguments(workspace, workspace / "wanted", *settings("bf16=true", "fused_kernels=true"))
    code, _, err = cli(*wanted)
    assert code == 2 and "error: fused kernels: the engine was not compiled: no C++ compiler was found" in err
    assert not (workspace / "wanted").exists()


@pytest.mark.parametrize("value", ["true", "false"])
@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ((), "and in bf16 alone"),
        (
            ("bf16=true", "weight_quantizer=lsq", "activation_granularity=token"),
            "only twn, uniform with a scale per",
        ),
        (
            ("bf16=true", "weight_granularity=row", "activation_granularity=token"),
            "only twn, uniform with a scale per",
        ),
    ],
)
def test_where_they_change_nothing_the_key_is_refused(cli, workspace, value, more, reason):
    run = train_arguments(workspace, workspace / "refused", *settings(f"fused_kernels={value}", *more))
    code, _, err = cli(*run)
    assert code == 2 and "fused_kernels" in err and reason in err, err
    assert not (workspace / "refused").exists()


def test_a_run_that_goes_on_the_other_way_is_told_so(cli, workspace, request):
    run = train_arguments(workspace, workspace / "resumed", *settings("bf16=true", "max_steps=8", "eval_steps=8"))
    ends = StopOnSignal.on_step_end

    def stop(self, args, state, control, **kwargs):
        self.asked = True
        return ends(self, args, state, control, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopOnSignal, "on_step_end", stop)
        assert cli(*run)[0] == 130
    request.getfixturevalue("not_compiled")
    with pytest.warns(UserWarning, match="started with fused kernels and resumed without them"):
        code, _, err = cli(*run, "--resume")
    assert code == 0, err
    assert json.loads((workspace / "resumed" / "metrics.json").read_text())["fused_kernels"] is True, "as it began"
