"""What is exported computes what the model computes: operators against slow loops, stand-ins and files against QAT."""

import copy
import sys
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tritune
from families import FAMILIES, one_layer, text_batch
from onnx_graphs import count_integer_products, optimized_graph, products_of
from tritune import Quantization, TrituneError
from tritune.checkpoints.packing import pack
from tritune.checkpoints.size import size_bytes
from tritune.deploy.export.codes import codes_of, signed
from tritune.deploy.export.dense import dense
from tritune.deploy.export.integer import IntegerLinear, with_integer_arithmetic
from tritune.deploy.export.onnx import export_onnx, to_onnx
from tritune.deploy.export.operators import ZERO_POINT, matmul_integer, quantize, unpack
from tritune.quant import Granularity, Uniform

NEEDS_ONNX = "needs onnx, onnxscript and onnxruntime: pip install 'tritune[onnx]'"
# A code next to a rounding boundary may fall on its other side and moves its row; a wrong code or scale moves them all.
CLOSE, FLIPPED = 1e-5, 0.3


def student(name: str, activations: str = "tensor", weights: str = "tensor", bits: int = 2, **more):
    quantization = Quantization(
        activation_granularity=activations, weight_granularity=weights, weight_bits=bits, **more
    )
    return tritune.prepare(one_layer(name).build(), quantization)


def batches(name: str) -> list[dict[str, torch.Tensor]]:
    """Lengths and sizes unlike those a model is traced with, one token, padding, a row without any token."""
    if FAMILIES[name].batch is not text_batch:
        pixels = FAMILIES[name].batch()["pixel_values"]
        return [{"pixel_values": pixels[:size] * factor} for size, factor in ((1, 1), (3, 1), (2, 0), (3, 5))]
    found = [
        {key: value[:size] for key, value in text_batch(tokens).items()}
        for tokens, size in ((1, 1), (1, 3), (2, 2), (5, 3), (7, 1), (12, 3), (30, 3))
    ]
    empty = text_batch(6)
    empty["attention_mask"] = empty["attention_mask"] * torch.tensor([[1], [0], [1]])
    return [*found, empty]


def logits(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


def is_same(ours: list[torch.Tensor], theirs: list[torch.Tensor], flipped: float = FLIPPED) -> bool:
    difference = torch.cat([(a - b).abs().amax(-1) for a, b in zip(ours, theirs, strict=True)])
    return bool(difference.median() < CLOSE and difference.max() < flipped)


# Operators


@pytest.mark.parametrize("granularity", [Granularity.TENSOR, Granularity.TOKEN, Granularity.HEAD])
@pytest.mark.parametrize("zero_point, signed", [(ZERO_POINT, False), (0, True)])
def test_quantize_against_a_loop(granularity, zero_point, signed):
    values = torch.randn(2, 3, 4, 5)
    values[0, 1] = 0
    values[1, 2, 0, 0] = -7.0  # beyond the clip
    dims = [] if granularity is Granularity.TENSOR else list(granularity.dims(values))
    codes, scale = quantize(values, dims, 127, 2.5, zero_point, signed)
    assert codes.dtype is (torch.int8 if signed else torch.uint8) and scale.isfinite().all()
    scales = scale.expand(values.shape)
    for index in np.ndindex(*values.shape):
        group = {"tensor": values, "token": values[index[:3]], "head": values[index[:2]]}[granularity]
        largest = min(max(float(group.abs().max()), 1e-30), 2.5)
        assert float(scales[index]) == pytest.approx(largest / 127)
        exact = np.clip(float(values[index]) * 127 / largest, -127, 127)
        assert abs(int(codes[index]) - zero_point - exact) <= 0.5 + 1e-4


def test_quantize_finds_the_codes_that_training_finds():
    values = torch.randn(50, 40) * 1.5
    wanted, scale = Uniform(8).quantize(values)
    codes, own_scale = quantize(values, [], 127, 2.5, ZERO_POINT, False)
    assert torch.equal(codes.int() - ZERO_POINT, wanted.int()) and torch.allclose(own_scale, scale)


def test_ties_go_to_the_even_code():
    codes, _ = quantize(torch.tensor([127 / 64, 0.5 / 64, 1.5 / 64, -0.5 / 64, -2.5 / 64]), [], 127, 2.5, 0, True)
    assert codes.tolist() == [127, 0, 2, 0, -2]


@pytest.mark.parametrize("zero_points", [(0, 0), (128, 0), (128, 128)])
def test_matmul_integer_is_exact(zero_points):
    left, right = torch.randint(-127, 128, (2, 6, 300)), torch.randint(-127, 128, (2, 300, 4))
    stored = [
        (codes + zero).to(torch.uint8 if zero else torch.int8)
        for codes, zero in zip((left, right), zero_points, strict=True)
    ]
    scale = torch.tensor(2.0)
    product = matmul_integer(stored[0], scale, stored[1], scale, *zero_points)
    assert torch.equal(product, (left @ right).float() * 4)


@given(st.sampled_from([2, 4, 8]), st.integers(1, 3), st.integers(1, 19), st.integers(0, 2**31))
def test_unpack_takes_back_pack(bits, rows, width, seed):
    limit = 2 ** (bits - 1)
    codes = torch.randint(-limit, limit, (rows, width), generator=torch.Generator().manual_seed(seed))
    packed = pack(codes.to(torch.int8), bits, signed(bits))
    assert packed.shape == (rows, -(-width * bits // 8))
    assert torch.equal(unpack(packed, bits, width).long(), codes)


# Stand-ins


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activations": "token", "weights": "row"},
        {"bits": 8, "weights": "row"},
        {"bits": 3, "activations": "token", "embedding_granularity": "tensor"},
        {"attention_products": False},
        {"activation_bits": 4, "activations": "token"},
        {"activation_bits": None},
        {"classifier": True, "weight_quantizer": "least_squares"},
        {"bits": 1, "weight_quantizer": "elastic_binary", "embedding_bits": 3},
        {"weight_quantizer": "seq", "weights": "row", "activations": "token"},
        {"weight_quantizer": "quaternary", "weights": "row", "activations": "token"},
        {"bits": 4, "weight_quantizer": "lsq"},
        {"bits": 4, "weight_quantizer": "dorefa", "embedding_quantizer": "clipped_uniform"},
    ],
    ids=str,
)
def test_stand_ins_compute_what_the_model_computes(name, settings):
    model = student(name, **settings)
    wanted = [logits(model, batch) for batch in batches(name)]
    modules = dict(model.named_modules())
    twin = with_integer_arithmetic(model)
    found = [logits(twin, batch) for batch in batches(name)]
    linear = [module for module in twin.modules() if isinstance(module, IntegerLinear)][-1]
    linear.scale.mul_(2)
    mutated = [logits(twin, batch) for batch in batches(name)]
    # The step between two codes of 4 bits is sixteen times that of 8.
    flipped = 16 * FLIPPED if settings.get("activation_bits") == 4 else FLIPPED
    assert is_same(found, wanted, flipped) and not is_same(mutated, wanted, flipped)
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(logits(model, batch), one) for batch, one in zip(batches(name), wanted, strict=True))


def test_a_model_is_copied_as_before():
    model = student("bert")
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, text_batch()), logits(model, text_batch()))


def test_a_quantizer_without_an_operator_is_refused():
    class Odd(Uniform.__base__):
        bits, granularity, clip = 8, Granularity.TENSOR, 2.5
        _encode = _decode = _scale = _stored_scale = _unit = None

    model = student("bert")
    next(
        module for module in model.modules() if codes_of(module) and getattr(module, "input_quantizer", None)
    ).input_quantizer = Odd()
    twin = with_integer_arithmetic(model)
    with pytest.raises(TrituneError, match="Odd"):
        logits(twin, text_batch())


WIDTHS = {
    ("twn", 2): 2,
    ("bwn", 1): 2,
    ("lsq", 2): 2,
    ("seq", 2): 2,
    ("quaternary", 2): 2,
    ("uniform", 3): 4,
    ("lsq", 4): 4,
    ("seq", 3): 4,
    ("dorefa", 4): 4,
    ("lsq", 8): 8,
}


@pytest.mark.parametrize("name, bits", WIDTHS)
def test_codes_take_the_narrowest_integers_that_hold_them(name, bits):
    linear = student("distilbert", bits=bits, weight_quantizer=name).pre_classifier
    weight = codes_of(linear)
    assert weight.bits == WIDTHS[name, bits] and weight.stored.amin() >= signed(weight.bits)[0]
    assert torch.allclose((weight.codes * weight.scale), linear.quantized_weight, rtol=1e-6, atol=0)
    stored = unpack(pack(weight.stored, weight.bits, signed(weight.bits)), weight.bits, weight.codes.shape[1])
    assert torch.equal(2 * stored + 1 if weight.are_odd else stored, weight.codes.float())


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"activation_quantizer": "lsq"}, "activations quantized by LearnedStep"),
        ({"activation_quantizer": "moving_min_max"}, "activations quantized by MovingMinMax"),
        ({"bits": 8, "weight_quantizer": "min_max"}, "weights quantized by MinMax"),
    ],
)
def test_quantizers_that_onnx_has_no_operator_for_are_refused_in_one_line(settings, name):
    pytest.importorskip("onnxscript", reason=NEEDS_ONNX)
    with pytest.raises(TrituneError, match=rf"^[^\n]*{name} cannot be exported$"):
        to_onnx(student("bert", **settings))


# Files

CASES = [
    ("bert", "tensor", "tensor", 2, 25),
    ("bert", "token", "row", 2, 18),
    pytest.param("bert", "tensor", "row", 1, 21, marks=pytest.mark.slow),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("distilbert", "token", "row", 4, 21),
            ("distilbert", "tensor", "tensor", 2, 18),
            ("vit", "tensor", "tensor", 8, 25),
            ("vit", "token", "row", 3, 18),
            ("albert", "tensor", "row", 2, 25),
            ("zorp", "token", "tensor", 2, 25),
            ("zorp_pre_norm", "tensor", "row", 2, 18),
        )
    ),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function from a case to its model and its file, each made once."""
    pytest.importorskip("onnxscript", reason=NEEDS_ONNX)
    pytest.importorskip("onnxruntime", reason=NEEDS_ONNX)
    folder = tmp_path_factory.mktemp("onnx")

    @cache
    def make(name, activations, weights, bits, opset):
        model = student(name, activations, weights, bits)
        path = folder / f"{name}-{activations}-{weights}-{bits}-{opset}.onnx"
        export_onnx(model, path, opset)
        return model, path

    return make


def run(path, batch) -> torch.Tensor:
    from tritune.deploy.export.runtime import OnnxModel

    types = {"token_type_ids": torch.zeros_like(batch["input_ids"])} if "input_ids" in batch else {}
    return OnnxModel(path)(**types, **batch).logits


@pytest.mark.parametrize("opset", [18, 25])
def test_odd_codes_take_two_bits_too(tmp_path, opset):
    pytest.importorskip("onnxscript", reason=NEEDS_ONNX)
    pytest.importorskip("onnxruntime", reason=NEEDS_ONNX)
    import onnx

    sizes = {}
    for name in ("quaternary", "twn"):
        model, path = student("bert", "token", "row", weight_quantizer=name), tmp_path / f"{name}.onnx"
        export_onnx(model, path, opset)
        found = [run(path, batch) for batch in batches("bert")]
        assert is_same(found, [logits(model, batch) for batch in batches("bert")], FLIPPED)
        packed = [one for one in onnx.load(path).graph.initializer if "packed" in one.name]
        sizes[name] = sorted((list(one.dims), one.data_type) for one in packed)
    assert sizes["quaternary"] == sizes["twn"] and sizes["twn"]


@pytest.mark.parametrize("name, activations, weights, bits, opset", CASES)
def test_the_file_answers_as_the_model(exported, name, activations, weights, bits, opset):
    model, path = exported(name, activations, weights, bits, opset)
    found = [run(path, batch) for batch in batches(name)]
    assert all(one.isfinite().all() for one in found)
    assert is_same(found, [logits(model, batch) for batch in batches(name)])


@pytest.mark.parametrize("name, activations, weights, bits, opset", CASES)
def test_the_file_of_a_packed_model_is_that_of_its_qat_model(
    exported, tmp_path, name, activations, weights, bits, opset
):
    model, path = exported(name, activations, weights, bits, opset)
    packed = tritune.convert(copy.deepcopy(model))
    assert count_integer_products(packed) == count_integer_products(model)
    export_onnx(packed, tmp_path / "packed.onnx", opset)
    assert (tmp_path / "packed.onnx").stat().st_size == path.stat().st_size
    for batch in batches(name):
        assert torch.equal(run(tmp_path / "packed.onnx", batch), run(path, batch))


@pytest.mark.parametrize("name, activations, weights, bits, opset", CASES)
def test_the_graph_that_runs_multiplies_integers(exported, tmp_path, name, activations, weights, bits, opset):
    """ONNX Runtime rewrites a graph before it runs it: what is counted is what it made of it."""
    model, path = exported(name, activations, weights, bits, opset)
    assert products_of(optimized_graph(path, tmp_path / "optimized.onnx")) == {
        "integer": count_integer_products(model),
        "float": 1,  # the classifier
        "other": 0,
        "convolution": int(name == "vit"),
    }


@pytest.mark.parametrize("name, activations, weights, bits, opset", CASES)
def test_the_file_holds_codes_at_their_width(exported, name, activations, weights, bits, opset):
    import onnx

    model, path = exported(name, activations, weights, bits, opset)
    proto = onnx.load(path)
    assert proto.opset_import[0].version == opset
    if bits == 3:
        bits = 4
    stored = sum(tensor.ByteSize() for tensor in proto.graph.initializer)
    names_and_shapes = 200 * len(proto.graph.initializer)
    codes = sum(module.weight.numel() for module in model.modules() if codes_of(module))
    smallest = size_bytes(model) + codes * (bits - codes_bits(model)) / 8
    assert smallest <= stored <= smallest + names_and_shapes
    kinds = {tensor.data_type for tensor in proto.graph.initializer if "codes_" in tensor.name}
    native = {2: onnx.TensorProto.INT2, 4: onnx.TensorProto.INT4}.get(bits)
    bytes_ = {onnx.TensorProto.UINT8}
    assert kinds == ({native} if native and opset >= {2: 25, 4: 21}[bits] else bytes_)


def codes_bits(model) -> int:
    return next(codes.bits for module in model.modules() if (codes := codes_of(module)))


@pytest.mark.parametrize("opset", [25, 18])
def test_one_wrong_code_is_noticed(exported, tmp_path, opset):
    import onnx

    case = next(case for case in CASES if isinstance(case, tuple) and case[-1] == opset)
    model, path = exported(*case)
    proto = onnx.load(path)
    tensor = next(tensor for tensor in proto.graph.initializer if "pooler.dense.codes_2" in tensor.name)
    raw = bytearray(tensor.raw_data)
    raw[0] ^= 0b01 if opset == 25 else 0b11
    tensor.raw_data = bytes(raw)
    onnx.save(proto, tmp_path / "mutant.onnx")
    wanted = [logits(model, batch) for batch in batches("bert")]
    assert not is_same([run(tmp_path / "mutant.onnx", batch) for batch in batches("bert")], wanted)


def test_batch_mates_do_not_count_with_a_scale_per_token(exported):
    _, path = exported("bert", "token", "row", 2, 18)
    together = text_batch(9)
    alone = [run(path, {key: value[row : row + 1] for key, value in together.items()}) for row in range(3)]
    assert torch.allclose(torch.cat(alone), run(path, together), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("opset", [17, 26])
def test_other_opsets_are_refused(opset):
    with pytest.raises(TrituneError, match="18 to 25"):
        to_onnx(student("bert"), opset)


def test_without_onnx_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(TrituneError, match=r"tritune\[onnx\]"):
        to_onnx(student("bert"))


# Dense


@pytest.mark.parametrize("name", FAMILIES)
def test_dense_holds_the_quantized_weights_and_nothing_of_tritune(name):
    model = student(name, weights="row")
    plain = dense(model)
    assert type(plain) is type(model) and plain.state_dict().keys() == model.state_dict().keys()
    for key, module in model.named_modules():
        if codes_of(module):
            assert torch.equal(plain.get_submodule(key).weight, module.weight_quantizer(module.weight.detach()))
            assert len(plain.get_submodule(key).weight[0].unique()) <= 3
    assert "tritune" not in str(plain.config.to_dict())


@pytest.mark.parametrize(
    "settings",
    [{}, {"bits": 4}, {"bits": 3, "weight_quantizer": "lsq", "activation_quantizer": "lsq"}, {"bits": 1}],
    ids=str,
)
def test_dense_of_a_packed_model_is_that_of_its_qat_model(settings):
    model = student("bert", **settings)
    plain, packed = dense(model), dense(tritune.convert(copy.deepcopy(model)))
    assert plain.state_dict().keys() == packed.state_dict().keys()
    assert all(torch.equal(tensor, packed.state_dict()[name]) for name, tensor in plain.state_dict().items())


# Command line


def test_wrong_command_lines_of_export(cli, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    for arguments, message in (
        (["--output", tmp_path / "taken"], "holds"),
        (["--output", tmp_path / "none" / "model.onnx"], "no folder"),
        (["--output", tmp_path / "taken" / "file", "--format", "dense"], "file"),
        (["--output", tmp_path / "new", "--task", "sst2"], "--verify"),
        (["--output", tmp_path / "new", "--set", "max_length=8"], "--verify"),
        (["--output", tmp_path / "new"], "no such folder"),
    ):
        code, _, errors = cli("export", tmp_path / "absent", *arguments)
        assert code == 2 and message in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "new").exists()
