"""Fused kernels: the plain path's numbers, where they stand in for it, and what happens without a compiler."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from contextlib import contextmanager

import pytest
import torch

from tritune.compute import kernels, products
from tritune.compute.kernels import build, fused
from tritune.errors import TrituneError
from tritune.quant import Granularity, LeastSquaresTernary, Quantizer, Ternary, Uniform
from tritune.training.resume import StopOnSignal
from workspace import make_workspace, train_arguments

BFLOAT16 = torch.bfloat16
needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler"
)

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
pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def in_use():
    with kernels.fused_kernels():
        yield


@contextmanager
def not_in_use():
    token = fused._in_use.set(False)
    yield
    fused._in_use.reset(token)


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


def test_the_number_of_threads_changes_no_bit():
    weight, found = torch.randn(1000, 1000), []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
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
    ],
)
def test_everything_else_takes_the_plain_path(monkeypatch, quantizer, given, dtype):
    monkeypatch.setattr(fused, "_KERNELS", dict.fromkeys(fused._KERNELS, "would not be callable"))
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


LOAD = "from tritune.compute.kernels import load_kernels\nload_kernels()\nimport torch\n"
USE = "print(torch.ops.tritune_kernels.ternary(torch.tensor([1.0, 0.1, -1.0]), 2.5, 0.7)[0].tolist())"


def loaded(**environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", LOAD + USE], env=os.environ | environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_a_compiled_library_is_kept_and_a_folder_that_cannot_be_written_to_does_no_harm(tmp_path):
    kept = tmp_path / "extensions"
    first = loaded(TORCH_EXTENSIONS_DIR=str(kept))
    assert first.stdout == "[1.0, 0.0, -1.0]\n", first.stderr
    (library,) = (kept / "tritune").iterdir()
    written = library.stat().st_mtime_ns
    assert loaded(TORCH_EXTENSIONS_DIR=str(kept)).returncode == 0
    assert library.stat().st_mtime_ns == written and list((kept / "tritune").iterdir()) == [library]
    (tmp_path / "a file").touch()
    elsewhere = loaded(TORCH_EXTENSIONS_DIR=str(tmp_path / "a file"))
    assert elsewhere.stdout == first.stdout, elsewhere.stderr
    library.write_bytes(b"no library")
    assert loaded(TORCH_EXTENSIONS_DIR=str(kept)).stdout == first.stdout, "a broken library is made anew"
    assert library.stat().st_size > 10_000


def forget_attempts() -> None:
    build._failure.cache_clear()
    build.kernels_available.cache_clear()


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A function that sets a script as compiler; nothing has been compiled yet."""
    forget_attempts()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    fused._in_use.set(False)  # until the fixture of this file takes it back

    def use(script: str) -> None:
        path = tmp_path / "compiler"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("CXX", str(path))

    yield use
    forget_attempts()


INCLUDED = "In file included from /usr/include/c++/12/system_error:44,"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 3", r"the C\+\+ compiler .*/compiler fails: exit code 3"),
        (
            f"echo '{INCLUDED}' >&2; echo 'a.cpp:1: error: no such thing' >&2; exit 1",
            "fails: a.cpp:1: error: no such thing",
        ),
        (r"printf 'x: error: caf\351\n' >&2; exit 1", "fails: x: error: caf"),
        ("exit 0", "they cannot be compiled here"),
        ('while [ "$1" != -o ]; do shift; done; echo junk > "$2"', "they cannot be compiled here .*quantizers"),
    ],
)
def test_what_the_compiler_says_is_one_line(compiler, tmp_path, script, message):
    compiler(script)
    for _ in range(2):
        with pytest.raises(TrituneError, match=f"^fused kernels: .*{message}") as error:
            kernels.load_kernels()
        assert "\n" not in str(error.value)
    assert not list((tmp_path / "extensions" / "tritune").iterdir()), "nothing half-written"


@pytest.mark.parametrize(
    ("value", "message"), [("/no/such/compiler", "install g\\+\\+$"), ('g++ "x', "No closing quotation")]
)
def test_a_compiler_that_is_none(compiler, monkeypatch, value, message):
    monkeypatch.setenv("CXX", value)
    with pytest.raises(TrituneError, match=message):
        kernels.load_kernels()


def test_a_failure_is_found_and_said_once(compiler, tmp_path):
    compiler(f"echo x >> {tmp_path}/calls; exit 1")
    with pytest.warns(UserWarning, match=r"fused kernels: the C\+\+ compiler .* goes on without them"):
        assert not kernels.kernels_available()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not kernels.kernels_available()
    assert (tmp_path / "calls").read_text() == "x\n"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("kernels"))


def settings(*more: str) -> list[str]:
    return [part for key in ("max_steps=2", "eval_steps=2", *more) for part in ("--set", key)]


@pytest.fixture
def calls(monkeypatch):
    """The quantizers whose kernels were called."""
    found, original = [], fused._KERNELS

    def kernel(quantizer: Quantizer, given: torch.Tensor):
        found.append(type(quantizer))
        return original[type(quantizer)](quantizer, given)

    monkeypatch.setattr(fused, "_KERNELS", dict.fromkeys(original, kernel))
    fused._in_use.set(False)  # until the fixture of this file takes it back
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
    assert not fused._in_use.get()


def test_without_a_compiler_training_goes_on_unless_they_were_asked_for(compiler, cli, workspace):
    compiler("exit 1")
    with pytest.warns(UserWarning, match="fused kernels: .* goes on without them"):
        code, _, err = cli(*train_arguments(workspace, workspace / "plain", *settings("bf16=true")))
    assert code == 0, err
    assert json.loads((workspace / "plain" / "metrics.json").read_text())["fused_kernels"] is False
    wanted = train_arguments(workspace, workspace / "wanted", *settings("bf16=true", "fused_kernels=true"))
    code, _, err = cli(*wanted)
    assert code == 2 and "error: fused kernels: the C++ compiler" in err and "fails: exit code 1" in err
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


def test_a_run_that_goes_on_the_other_way_is_told_so(compiler, cli, workspace):
    run = train_arguments(workspace, workspace / "resumed", *settings("bf16=true", "max_steps=8", "eval_steps=8"))
    ends = StopOnSignal.on_step_end

    def stop(self, args, state, control, **kwargs):
        self.asked = True
        return ends(self, args, state, control, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopOnSignal, "on_step_end", stop)
        patch.setattr(build, "_why_not", lambda: None)  # other tests have loaded them
        assert cli(*run)[0] == 130
    compiler("exit 1")
    forget_attempts()
    with pytest.warns(UserWarning, match="started with fused kernels and resumed without them"):
        code, _, err = cli(*run, "--resume")
    assert code == 0, err
    assert json.loads((workspace / "resumed" / "metrics.json").read_text())["fused_kernels"] is True, "as it began"
