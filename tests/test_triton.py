"""The kernel for packed weights on GPUs, against int64 sums and torch's own path; on the CPU triton interprets it.

Triton decides when it is imported whether it interprets: `test_the_interpreter` runs this file once more, in a process
where it does. On a GPU the same tests run on what triton compiles, with `-m gpu`.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from tritune.checkpoints import gpu_linear, packed
from tritune.checkpoints.packed import PackedLinear
from tritune.checkpoints.packing import first_code, pack
from tritune.compute import held
from tritune.modeling.layers import QuantLinear
from tritune.quant import Granularity, Quaternary, Ternary, Uniform

TOKEN, ROW, TENSOR = Granularity.TOKEN, Granularity.ROW, Granularity.TENSOR
WEIGHTS = {"ternary": range(-1, 2), "quaternary": range(-3, 4, 2), "from -2": range(-2, 2)}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if importlib.util.find_spec("triton") is None:
    reason = "triton is not installed: it comes with torch's builds for GPUs, and CI has the build for CPUs"
    pytest.skip(reason, allow_module_level=True)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(params=["cpu"] if INTERPRETED else [pytest.param("cuda", marks=(pytest.mark.gpu, needs_gpu))])
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.mark.skipif(INTERPRETED, reason="this is its process")
def test_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-3000:] + result.stderr[-1000:]


def sampled(every: range, rows: int, columns: int) -> torch.Tensor:
    return (every.start + every.step * torch.randint(0, len(every), (rows, columns))).to(torch.int8)


def assert_exact(
    codes: torch.Tensor,
    weights: torch.Tensor,
    every: range,
    device: torch.device,
    *,
    scales: tuple[int, int] | None = None,
    bias: bool = True,
) -> torch.Tensor:
    """The product is that of the int64 sums, rounded as torch rounds; `scales` is how many each side has."""
    from tritune.compute.triton_product import packed_product

    (rows, _), features = codes.shape, len(weights)
    scale, weight_scale = (0.01 + torch.rand(count, 1) for count in scales or (rows, features))
    biases = torch.randn(features) if bias else None
    expected = (codes.long() @ weights.long().T).to(torch.float32) * scale * weight_scale.mT
    expected = expected if biases is None else expected + biases
    given = (codes, scale, pack(weights, 2, every), weight_scale, biases)
    own = [tensor if tensor is None else tensor.to(device) for tensor in given]
    found = packed_product(*own, first=first_code(2, every), step=every.step).cpu()
    assert found.dtype is torch.float32 and torch.equal(found, expected)
    return found


@pytest.mark.parametrize("every", WEIGHTS.values(), ids=WEIGHTS)
def test_every_tail(every, device):
    """Rows, features and columns from 1 to 70, each side of a tile's edge among them."""
    shapes = [(1, 1, 1), (15, 63, 127), (16, 64, 128), (17, 65, 129), (64, 1, 4), (65, 70, 5), (1, 70, 257)]
    shapes += torch.randint(1, 71, (20, 3)).tolist()
    for index, (rows, features, columns) in enumerate(shapes):
        codes, weights = sampled(range(-127, 128), rows, columns), sampled(every, features, columns)
        counts = (rows if index % 2 else 1, features if index % 3 else 1)
        assert_exact(codes, weights, every, device, scales=counts, bias=index % 5 > 0)


def saturated(every: range, code: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.full((2, columns), code, dtype=torch.int8)
    return codes, torch.tensor([[every[-1]], [every[0]]], dtype=torch.int8).repeat(1, columns)


@pytest.mark.parametrize("every", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("code", [-127, 127])
def test_saturated_rows(code, every, device):
    assert_exact(*saturated(every, code, 1030), every, device)


def test_sums_that_float32_does_not_hold(device):
    every = WEIGHTS["quaternary"]
    codes, weights = saturated(every, 127, 45_001)
    largest = (codes[0].long() @ weights[0].long()).item()
    assert int(torch.tensor(largest).float()) != largest
    assert_exact(codes, weights, every, device)


@pytest.mark.parametrize("every", WEIGHTS.values(), ids=WEIGHTS)
def test_zero_rows_give_the_bias(every, device):
    codes, weights = sampled(range(-127, 128), 20, 33), sampled(every, 9, 33)
    codes[3:18] = 0
    found = assert_exact(codes, weights, every, device)
    assert (found[3:18] == found[3]).all()
    assert (assert_exact(codes, weights, every, device, bias=False)[3:18] == 0).all()


def test_views_and_nothing_at_all(device):
    every = WEIGHTS["ternary"]
    weights = sampled(every, 9, 14)
    assert_exact(sampled(range(-127, 128), 14, 6).mT, weights, every, device)
    assert_exact(sampled(range(-127, 128), 0, 14), weights, every, device)


def layer(weight_quantizer: Ternary | Quaternary, device: torch.device, bias: bool = True) -> PackedLinear:
    own = QuantLinear.from_float(nn.Linear(70, 37, bias=bias), weight_quantizer, Uniform(8, TOKEN))
    return PackedLinear.from_quantized(own).eval().to(device)


@pytest.mark.parametrize("granularity", [TENSOR, ROW])
@pytest.mark.parametrize("kind", [Ternary, Quaternary])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_linear_gives_the_bits_of_torch(kind, granularity, bias, device):
    module, values = layer(kind(granularity), device, bias), 2 * torch.randn(3, 5, 70, device=device)
    values[1, 2] = 0
    with torch.no_grad():
        found = module._on_gpu(values)
        assert found is not None and torch.equal(found.cpu(), module.cpu()(values.cpu()))


def test_what_several_layers_are_fed_is_quantized_once(device, monkeypatch):
    calls, own = [], Uniform.integers
    monkeypatch.setattr(Uniform, "integers", lambda *args: calls.append(args[2]) or own(*args))
    modules, values = [layer(Ternary(ROW), device) for _ in range(3)], torch.randn(2, 70, device=device)
    held.keep_newest_input(held.NewestInput())
    try:
        with torch.no_grad():
            assert all(module._on_gpu(values) is not None for module in modules)
    finally:
        held.keep_newest_input(None)
    assert calls == [torch.int8]


def test_what_is_left_to_torch(device):
    module, values = layer(Ternary(ROW), device), torch.randn(2, 70, device=device)
    with torch.no_grad():
        assert module._on_gpu(values) is not None
        assert module._on_gpu(values.half()) is None
        assert module._on_gpu(values[:, :69]) is None
        assert module._on_gpu(values[:0]) is None
        assert module._on_gpu(nn.Parameter(values)) is None
        with torch.autocast(device.type, torch.bfloat16):
            assert module._on_gpu(values) is None
        per_tensor = QuantLinear.from_float(nn.Linear(70, 37), Ternary(ROW), Uniform())
        assert PackedLinear.from_quantized(per_tensor).to(device)._on_gpu(values) is None
        wide = QuantLinear.from_float(nn.Linear(70, 37), Uniform(4, ROW), Uniform(8, TOKEN))
        assert PackedLinear.from_quantized(wide).to(device)._on_gpu(values) is None
    assert module._on_gpu(values.requires_grad_()) is None


def test_a_device_where_triton_fails_is_left_to_torch(device, monkeypatch):
    from tritune.compute import triton_product

    def fail(*args, **kwargs):
        raise RuntimeError("no C compiler\nand more")

    monkeypatch.setattr(triton_product, "packed_product", fail)
    with pytest.warns(UserWarning, match=r"triton does not work on \w+.* \(no C compiler\); torch multiplies"):
        assert gpu_linear._product_on.__wrapped__(device) is None


def test_a_layer_on_a_gpu_uses_it_by_itself(device, monkeypatch):
    if device.type == "cpu":
        pytest.skip("a layer on the CPU does not ask for it")
    calls, own = [], packed.gpu_linear
    monkeypatch.setattr(packed, "gpu_linear", lambda *args: calls.append(own(*args)) or calls[-1])
    module, values = layer(Ternary(ROW), device), torch.randn(2, 70, device=device)
    with torch.no_grad():
        found = module(values)
        assert found is calls[0] and torch.equal(found.cpu(), module.cpu()(values.cpu()))


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
@pytest.mark.parametrize(
    ("capability", "rows", "bias"),
    [(80, 16, True), (80, 64, False), (90, 16, False), (90, 64, True), (100, 64, True)],
)
def test_it_compiles_to_integer_matrix_instructions(capability, rows, bias, tmp_path, monkeypatch):
    """Without a GPU, too. No multiply and add is fused: it would round once where torch rounds twice."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tritune.compute.triton_product import _COLUMNS, _WEIGHT_ROWS, _multiply

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"first": -1, "step": 1, "tile_rows": rows, "tile_features": _WEIGHT_ROWS, "tile_bytes": _COLUMNS // 4}
    constants |= {} if bias else {"bias": None}
    pointers = {"codes": "*i8", "packed": "*u8"}
    pointers |= dict.fromkeys(("scale", "weight_scale", "bias", "product"), "*fp32")
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in _multiply.arg_names}
    source = ASTSource(_multiply, signature, constants)
    found = triton.compile(source, GPUTarget("cuda", capability, 32), {"enable_fp_fusion": False}).asm["ptx"]
    assert ".s32.s8.s8" in found and "fma." not in found
    assert ("add.f32" in found or "add.rn.f32" in found) == bias
