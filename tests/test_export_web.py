"""`--target web`: the rewritten graph computes what the model computes, by integer products in fewer nodes."""

from functools import cache

import pytest

from exportable import EXPORTABLE
from onnx_graphs import count_integer_products
from test_export import NEEDS_ONNX, batches, is_same, logits, run, student
from tritune.deploy.export.dense import dense
from tritune.deploy.export.onnx import export_onnx

TOKEN = {"activations": "token", "weights": "row"}
CASES = {
    "token": ("bert", TOKEN | {"weight_quantizer": "quaternary", "activation_clip": None}),
    "tensor": ("bert", {}),
    "clip": ("distilbert", TOKEN),
    "scales of both kinds": ("bert", {"activations": "token", "weights": "tensor"}),
    "8 bits": ("distilbert", TOKEN | {"bits": 8}),
    "4 bits": ("bert", TOKEN | {"bits": 4, "activation_clip": None}),
    "shared layers": ("albert", TOKEN | {"activation_clip": None}),
    "pre-norm": ("vit", TOKEN | {"activation_clip": None}),
    "float attention": ("bert", TOKEN | {"attention_products": False}),
    "float activations": ("bert", {"activation_bits": None}),
}
FAST = ("token", "tensor", "pre-norm")


def cases(names):
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function from a case to its model and its file, each made once."""
    pytest.importorskip("onnxscript", reason=NEEDS_ONNX)
    pytest.importorskip("onnxruntime", reason=NEEDS_ONNX)
    folder = tmp_path_factory.mktemp("web")

    @cache
    def make(name):
        family, settings = CASES[name]
        model, path = student(family, **settings), folder / f"{name}.onnx"
        export_onnx(model, path, target="web")
        return model, path

    return make


@pytest.mark.parametrize("name", cases(CASES))
def test_the_file_answers_as_the_model(exported, name):
    model, path = exported(name)
    found = [run(path, batch) for batch in batches(CASES[name][0])]
    assert all(one.isfinite().all() for one in found)
    assert is_same(found, [logits(model, batch) for batch in batches(CASES[name][0])])


def kinds(path) -> list[str]:
    import onnx

    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("name", cases(CASES))
def test_every_product_of_codes_is_one_of_integers(exported, name):
    model, path = exported(name)
    found = kinds(path)
    assert "MatMulInteger" not in found
    assert found.count("MatMulIntegerToFloat") == count_integer_products(model)
    assert found.count("MatMul") + found.count("Gemm") >= 1


def test_a_row_of_zeros_gives_zeros(tmp_path, exported):
    """The rewritten graph divides such a row by its largest magnitude."""
    model, path = exported("pre-norm")
    batch = batches("vit")[0]
    batch["pixel_values"] = batch["pixel_values"] * 0
    assert is_same([run(path, batch)], [logits(model, batch)])


def test_what_the_rewrite_saves(tmp_path, exported):
    model, path = exported("token")
    export_onnx(model, tmp_path / "native.onnx", 21)
    native, web = kinds(tmp_path / "native.onnx"), kinds(path)
    products = count_integer_products(model)
    # One layer: of three LayerNormalizations, that of the embeddings adds no residual.
    assert (native.count("LayerNormalization"), native.count("SkipLayerNormalization")) == (3, 0)
    assert (web.count("LayerNormalization"), web.count("SkipLayerNormalization")) == (1, 2)
    assert native.count("Clip") == products and "Clip" not in web
    # Of the weights, each is cast to the indices of its table; so are the token ids.
    assert native.count("Cast") - web.count("Cast") == products
    assert path.stat().st_size < (tmp_path / "native.onnx").stat().st_size


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_a_float_model_is_exported_for_the_web_too(tmp_path, name):
    pytest.importorskip("onnxruntime", reason=NEEDS_ONNX)
    model = dense(student(name))
    export_onnx(model, tmp_path / "float.onnx", target="web")
    found = [run(tmp_path / "float.onnx", batch) for batch in batches(name)]
    assert is_same(found[:-1], [logits(model, batch) for batch in batches(name)][:-1])


def test_other_formats_have_no_target(cli, tmp_path):
    code, _, errors = cli("export", tmp_path, "--output", tmp_path / "new", "--format", "dense", "--target", "web")
    assert code == 2 and "--target web" in errors and len(errors.splitlines()) == 1


@pytest.mark.parametrize("name", ["sentences", "tags", "questions", "classes"])
def test_every_kind_of_task_keeps_the_names_of_its_outputs(tmp_path, name):
    pytest.importorskip("onnxscript", reason=NEEDS_ONNX)
    import onnx

    source = EXPORTABLE[name].write_model(tmp_path / "model")
    model = EXPORTABLE[name].kind.from_pretrained(source).eval()
    outputs = []
    for target in ("native", "web"):
        export_onnx(model, tmp_path / f"{target}.onnx", target=target)
        outputs.append([value.name for value in onnx.load(tmp_path / f"{target}.onnx").graph.output])
    assert outputs[0] == outputs[1]
