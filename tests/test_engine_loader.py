"""What the engine's loader reads is what Python reads of the same files, and what the engine does not run, it says."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import PreTrainedModel

from combinations import crossed
from engine_models import DEPLOY, FAMILIES, NULL, PER_TOKEN, TERNARY, edited, save_packed
from tritune import Quantization
from tritune.checkpoints.load import load_pretrained
from tritune.checkpoints.packed import PackedLinear

# Heads, by the ends of the names of classes.
HEADS = {
    "sequences": ("ForSequenceClassification", "ForImageClassification"),
    "tokens": ("ForTokenClassification",),
    "spans": ("ForQuestionAnswering",),
    "none": ("Model",),
}
CASES = [
    (family, head)
    for family, row in FAMILIES.items()
    for head, ends in HEADS.items()
    if any(name.endswith(ends) for name in row.classes)
]
# Activations in the order of model.h.
GELU, GELU_TANH, RELU, TANH, NONE = range(5)


@dataclass(frozen=True)
class Names:
    """Of the modules of a layer: where the layers are, and in the order of `PARTS` and `NORMS`."""

    layers: str
    parts: tuple[tuple[str, ...], ...]
    norms: tuple[str, str]


PARTS = ("query_key_value", "projection", "ffn_in", "ffn_out")
NORMS = ("attention_norm", "output_norm")
_BERT = Names(
    "encoder.layer",
    (
        ("attention.self.query", "attention.self.key", "attention.self.value"),
        ("attention.output.dense",),
        ("intermediate.dense",),
        ("output.dense",),
    ),
    ("attention.output.LayerNorm", "output.LayerNorm"),
)
_DISTILBERT = Names(
    "transformer.layer",
    (
        ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        ("attention.out_lin",),
        ("ffn.lin1",),
        ("ffn.lin2",),
    ),
    ("sa_layer_norm", "output_layer_norm"),
)
_VIT = Names(
    "layers",
    (("attention.q_proj", "attention.k_proj", "attention.v_proj"), ("attention.o_proj",), ("mlp.fc1",), ("mlp.fc2",)),
    ("layernorm_before", "layernorm_after"),
)
_NAMES = {"DistilBERT": _DISTILBERT, "ViT": _VIT}
# Of the sequence head: the dense layer, its activation, the classifier.
_SEQUENCE = {
    "BERT": ("bert.pooler.dense", TANH, "classifier"),
    "DistilBERT": ("pre_classifier", RELU, "classifier"),
    "ELECTRA": ("classifier.dense", GELU, "classifier.out_proj"),
    "ViT": (None, NONE, "classifier"),
}
_ROBERTA = ("classifier.dense", TANH, "classifier.out_proj")


def quantization(**values) -> Quantization:
    return Quantization(**PER_TOKEN | values)


QUANTIZATIONS = {
    "four levels": DEPLOY,
    "ternary": TERNARY,
    "least squares": quantization(weight_quantizer="least_squares", embedding_granularity="tensor"),
    "binary": quantization(weight_bits=1, embedding_bits=2, weight_quantizer="elastic_binary"),
    "signs": quantization(weight_bits=1, embedding_bits=4, weight_granularity="tensor"),
    **{f"{bits} bits": quantization(weight_bits=bits, embedding_bits=max(4, bits)) for bits in range(3, 9)},
    "8 bits per tensor": quantization(weight_bits=8, weight_granularity="tensor", activation_clip=None),
    "learned": quantization(weight_quantizer="lsq"),
    "learned, 8 bits": quantization(weight_bits=8, weight_quantizer="lsq"),
    "stretched": quantization(weight_quantizer="seq"),
    "stretched, 3 bits": quantization(weight_quantizer="seq", weight_bits=3, embedding_bits=2),
    "dorefa": quantization(weight_quantizer="dorefa", weight_bits=4),
    "own embedding": quantization(embedding_bits=8),
    "few activation bits": quantization(activation_bits=4, pooler=False),
}


# -- what is read


def unpacked(weight: dict) -> np.ndarray:
    """The codes of a dumped weight, (rows, columns), from its panels as kernels.h draws them."""
    fields = np.frombuffer(bytes.fromhex(weight["fields"]), np.uint8)
    rows, columns, bits = weight["rows"], weight["columns"], weight["bits"]
    panels, groups = -(-rows // 16), -(-columns // 64)
    if bits == 2:
        words = fields.reshape(panels, groups * 4, 16, 4)  # [panel][block of 16 columns][row][byte k]
        columns_of_block = np.stack([words >> 2 * j & 3 for j in range(4)], axis=3)  # ... [row][j][k]
        whole = columns_of_block.transpose(0, 2, 1, 3, 4).reshape(panels * 16, groups * 64)
    else:
        whole = fields.reshape(panels, groups * 16, 16, 4).transpose(0, 2, 1, 3).reshape(panels * 16, groups * 64)
    return weight["first"] + weight["step"] * whole[:rows, :columns].astype(np.int32)


def assert_floats(found: list[float], expected: torch.Tensor) -> None:
    np.testing.assert_array_equal(np.array(found, np.float32), expected.detach().float().flatten().numpy())


def assert_packed(found: dict, modules: list[PackedLinear]) -> None:
    codes = torch.cat([module.codes for module in modules])
    np.testing.assert_array_equal(unpacked(found), codes.numpy())
    scales = [m.weight_quantizer.restore_integers(m.codes, m.weight_scale, torch.float32)[1] for m in modules]
    rows = torch.cat([s.expand(len(m.codes), 1) for s, m in zip(scales, modules, strict=True)]).flatten()
    empty = torch.zeros(-len(rows) % 16)
    assert_floats(found["scales"], torch.cat([rows, empty]))
    assert_floats(found["bias"], torch.cat([*(module.bias for module in modules), empty]))


def assert_norm(found: dict, module: torch.nn.LayerNorm) -> None:
    assert_floats(found["weight"], module.weight)
    assert_floats(found["bias"], module.bias)


def assert_matrix(found: dict, module: torch.nn.Module) -> None:
    assert (found["rows"], found["columns"]) == tuple(module.weight.shape)
    assert_floats(found["values"], module.weight)
    assert_floats(found["bias"], getattr(module, "bias", None) if hasattr(module, "bias") else torch.zeros(0))


def assert_linear(packed: dict | None, matrix: dict | None, module: torch.nn.Linear) -> None:
    if isinstance(module, PackedLinear):
        assert matrix is None
        assert_packed(packed, [module])
    else:
        assert packed is None
        assert_matrix(matrix, module)


def assert_words(found: dict, module: torch.nn.Module, folder: Path) -> None:
    """The table lies in the file, and its fields times its scales are the embedding."""
    content = (folder / "model.safetensors").read_bytes()
    packed, offset = module.packed, found["offset"]
    assert content[offset : offset + packed.numel()] == packed.numpy().tobytes()
    assert (found["rows"], found["row_bytes"]) == tuple(packed.shape) and found["columns"] == module.columns
    bits = found["bits"]
    fields = packed.numpy()[..., None] >> np.arange(0, 8, bits, dtype=np.uint8) & (1 << bits) - 1
    codes = found["first"] + found["step"] * fields.reshape(len(packed), -1)[:, : module.columns].astype(np.int32)
    np.testing.assert_array_equal(codes, module.codes.numpy())
    values = codes.astype(np.float32) * np.array(found["scales"], np.float32)[:, None]
    # Python divides codes by the unit where the engine multiplies by the scale: three roundings in all.
    exact = module.weight_scale.dtype is torch.float32
    np.testing.assert_allclose(values, module.quantized_weight, rtol=0 if exact else 3 * 2.0**-24, atol=0)


def assert_head(found: dict, family: str, head: str, modules: dict[str, torch.nn.Module]) -> None:
    dense, activation, classifier = _SEQUENCE.get(family, _ROBERTA)
    if head == "none":
        has_pooler = "pooler.dense" in modules
        assert found["per_token"] == (not has_pooler) and found["classifier"] is None
        dense, activation = ("pooler.dense", TANH) if has_pooler else (None, NONE)
    elif head == "sequences":
        assert not found["per_token"]
        assert_matrix(found["classifier"], modules[classifier])
    else:
        dense, activation = None, NONE
        assert found["per_token"]
        assert_matrix(found["classifier"], modules["classifier" if head == "tokens" else "qa_outputs"])
    assert found["activation"] == activation
    if dense is None:
        assert found["dense"] is None and found["float_dense"] is None
    else:
        assert_linear(found["dense"], found["float_dense"], modules[dense])


def assert_texts(found: dict, family: str, folder: Path, embeddings: torch.nn.Module, config) -> None:
    first = config.pad_token_id + 1 if family in ("RoBERTa", "XLM-R", "CamemBERT") else 0
    assert (found["max_tokens"], found["first_position"]) == (config.max_position_embeddings - first, first)
    assert found["patches"] is None and not found["is_pre_norm"]
    assert_words(found["words"], embeddings.word_embeddings, folder)
    assert_matrix(found["positions"], embeddings.position_embeddings)
    if family == "DistilBERT":
        assert found["types"] is None
    else:
        assert_matrix(found["types"], embeddings.token_type_embeddings)
    assert_norm(found["embedding_norm"], embeddings.LayerNorm)


def assert_images(found: dict, embeddings: torch.nn.Module, last_norm: torch.nn.LayerNorm, config) -> None:
    patches, kernel = found["patches"], embeddings.patch_embeddings.projection
    assert found["is_pre_norm"] and found["words"]["rows"] == 0 and found["types"] is None
    assert found["max_tokens"] == embeddings.position_embeddings.shape[1]
    assert [patches[key] for key in ("channels", "image_size", "patch_size")] == [
        config.num_channels,
        config.image_size,
        config.patch_size,
    ]
    rows = torch.nn.functional.pad(kernel.weight.flatten(1), (0, 0, 0, -len(kernel.weight) % 16))
    assert_floats(patches["projection"]["values"], rows.T)
    assert_floats(patches["projection"]["bias"], torch.nn.functional.pad(kernel.bias, (0, -len(kernel.bias) % 16)))
    assert_floats(patches["class_token"], embeddings.cls_token)
    assert_floats(found["positions"]["values"], embeddings.position_embeddings)
    assert_norm(found["last_norm"], last_norm)


def assert_read(found: dict, folder: Path, family: str, head: str) -> None:
    """Everything of a dumped model is what tritune's own loader makes of the folder."""
    model = load_pretrained(class_of(family, head), folder)
    config, modules = model.config, dict(model.named_modules())
    own, names = config.quantization_config.quantization, _NAMES.get(family, _BERT)
    base = "" if head == "none" else f"{model.base_model_prefix}."
    intermediate = config.hidden_dim if family == "DistilBERT" else config.intermediate_size
    assert [found[key] for key in ("hidden", "heads", "intermediate")] == [
        config.hidden_size,
        config.num_attention_heads,
        intermediate,
    ]
    assert found["clip"] == own.activation_clip and found["largest"] == 2 ** (own.activation_bits - 1) - 1
    assert found["activation"] == GELU
    if family == "ViT":
        assert_images(found, modules[f"{base}embeddings"], modules[f"{base}layernorm"], config)
    else:
        assert_texts(found, family, folder, modules[f"{base}embeddings"], config)
    if projection := modules.get(f"{base}embeddings_project"):
        assert_linear(found["embedding_projection"], found["float_embedding_projection"], projection)
    assert len(found["layers"]) == config.num_hidden_layers
    for number, layer in enumerate(found["layers"]):
        at = f"{base}{names.layers}.{number}."
        for part, linears in zip(PARTS, names.parts, strict=True):
            assert_packed(layer[part], [modules[f"{at}{name}"] for name in linears])
        for part, name in zip(NORMS, names.norms, strict=True):
            assert_norm(layer[part], modules[f"{at}{name}"])
            assert np.float32(found["epsilon"]) == np.float32(modules[f"{at}{name}"].eps)
    assert_head(found["head"], family, head, modules)


def index_of(family: str, head: str) -> int:
    return next(i for i, name in enumerate(FAMILIES[family].classes) if name.endswith(HEADS[head]))


def class_of(family: str, head: str) -> type[PreTrainedModel]:
    return getattr(transformers, FAMILIES[family].classes[index_of(family, head)])


@pytest.mark.parametrize(("family", "head"), CASES)
def test_every_family_and_head_is_read_as_python_reads_it(family, head, load_driver, tmp_path):
    folder = save_packed(family, index_of(family, head), DEPLOY, tmp_path / "packed")
    assert_read(load_driver.dump(folder), folder, family, head)


@pytest.mark.parametrize(("family", "own"), crossed({name: name for name in ("BERT", "ELECTRA")}, QUANTIZATIONS))
def test_every_quantizer_is_read_as_python_reads_it(family, own, load_driver, tmp_path):
    # Rows that end within a byte.
    config = {"embedding_size": 13} if family == "ELECTRA" else {"hidden_size": 18, "intermediate_size": 21}
    folder = save_packed(family, 0, own, tmp_path / "packed", **config)
    assert_read(load_driver.dump(folder), folder, family, "sequences")


def test_a_model_in_half_precision_is_read_in_single(load_driver, tmp_path):
    """The float rest of 16 bits is widened, exactly; scales have their own precision."""
    folder = save_packed("BERT", 0, DEPLOY, tmp_path / "packed", dtype=torch.float16)
    found, tensors = load_driver.dump(folder), load_file(folder / "model.safetensors")
    assert tensors["classifier.weight"].dtype is torch.float16
    assert_floats(found["head"]["classifier"]["values"], tensors["classifier.weight"])
    assert_floats(found["positions"]["values"], tensors["bert.embeddings.position_embeddings.weight"])
    half, bfloat = torch.tensor([6.0e-8, -6.1e-5, 65504.0, 0.0]), torch.tensor([1e-40, 3.3e38, -1.0, 0.0])
    for values in (half.half(), bfloat.bfloat16(), half.double()):
        bias = torch.cat([values, values.new_ones(12)])
        name = "bert.encoder.layer.0.output.LayerNorm.bias"
        changed = edited(folder, tmp_path / str(values.dtype), tensors={name: bias})
        assert_floats(load_driver.dump(changed)["layers"][0]["output_norm"]["bias"], bias)


def test_images_of_any_size_are_read(load_driver, tmp_path):
    """Patches that leave a rest of the image, and another width than a whole panel."""
    config = {"image_size": 13, "patch_size": 4, "num_channels": 1, "hidden_size": 18, "layer_norm_eps": 1e-5}
    folder = save_packed("ViT", 0, TERNARY, tmp_path / "packed", **config)
    assert_read(load_driver.dump(folder), folder, "ViT", "sequences")


def test_a_packed_patch_embedding_is_not_served(load_driver, tmp_path):
    folder = save_packed("ViT", 0, quantization(patch_embedding=True), tmp_path / "packed")
    said = load_driver.refusal(folder)
    assert said.startswith("not served: ") and "patch_embeddings.projection is packed" in said


@pytest.mark.parametrize(
    ("name", "activation"),
    [("gelu_new", GELU_TANH), ("gelu_pytorch_tanh", GELU_TANH), ("relu", RELU), ("tanh", TANH), ("gelu_python", GELU)],
)
def test_activations_have_the_names_of_transformers(name, activation, load_driver, packed_bert, tmp_path):
    assert load_driver.dump(edited(packed_bert, tmp_path / "other", {"hidden_act": name}))["activation"] == activation


def test_zero_scales_of_linears_are_raised_as_python_does(load_driver, packed_bert, tmp_path):
    name = "bert.encoder.layer.1.intermediate.dense.weight_scale"
    folder = edited(packed_bert, tmp_path / "zero", tensors={name: torch.zeros(24, 1)})
    assert_floats(load_driver.dump(folder)["layers"][1]["ffn_in"]["scales"][:24], torch.full((24,), 1e-15))


# -- what is not served

WORDS = "bert.embeddings.word_embeddings.weight"
OUT = "bert.encoder.layer.1.attention.output.dense"
Q = "quantization_config."
NOT_SERVED = {
    "another family": ({"model_type": "albert"}, {}, "model_type 'albert'"),
    "another head": ({"architectures": ["BertForMaskedLM"]}, {}, "architectures 'BertForMaskedLM'"),
    "a class of another family": ({"architectures": ["RobertaModel"]}, {}, "architectures 'RobertaModel'"),
    "an activation": ({"hidden_act": "silu"}, {}, "hidden_act 'silu'"),
    "a decoder": ({"is_decoder": True}, {}, "is_decoder true"),
    "cross-attention": ({"add_cross_attention": True}, {}, "add_cross_attention true"),
    "relative positions": ({"position_embedding_type": "relative_key"}, {}, "position_embedding_type 'relative_key'"),
    "some layers": ({Q + "layers": [0]}, {}, "quantization_config.layers"),
    "own settings of modules": ({Q + "modules": [["*", {"weight_bits": 4}]]}, {}, "quantization_config.modules"),
    "a scale per tensor": ({Q + "activation_granularity": "tensor"}, {}, "activation_granularity 'tensor'"),
    "float products": ({Q + "attention_products": False}, {}, "attention_products false"),
    "learned activations": ({Q + "activation_quantizer": "lsq"}, {}, "activation_quantizer 'lsq'"),
    "an own quantizer": ({Q + "weight_quantizer": "mine"}, {}, "weight_quantizer 'mine'"),
    "an own quantizer of words": ({Q + "embedding_quantizer": "mine"}, {}, "embedding_quantizer 'mine'"),
    "binary words": ({Q + "embedding_bits": 1}, {}, "word embeddings of 1 bits"),
    "words of 3 bits": ({Q + "embedding_bits": 3}, {}, "word embeddings of 3 bits"),
    "float words": ({}, {WORDS: torch.zeros(40, 16)}, f"{WORDS} is a float weight"),
    "a float Linear": ({}, {f"{OUT}.weight": torch.zeros(16, 16)}, f"{OUT}.weight is a float weight"),
    "a packed classifier": (
        {},
        {"classifier.weight": torch.zeros(3, 4, dtype=torch.uint8)},
        "classifier.weight is packed",
    ),
}
NULLS = {Q + "weight_bits": "weight_bits null", Q + "activation_bits": "activation_bits null"}
NULLS |= {Q + "embedding_bits": "embedding_bits null"}
ELSEWHERE = "the native engine does not run such a model; it runs module by module instead"


@pytest.mark.parametrize(("config", "tensors", "line"), NOT_SERVED.values(), ids=NOT_SERVED)
def test_what_is_not_served_is_said_in_one_line(config, tensors, line, load_driver, packed_bert, tmp_path):
    said = load_driver.refusal(edited(packed_bert, tmp_path / "other", config, tensors))
    assert said.startswith("not served: ") and line in said and said.endswith(ELSEWHERE)


@pytest.mark.parametrize(("key", "line"), NULLS.items())
def test_float_weights_and_activations_are_not_served(key, line, load_driver, packed_bert, tmp_path):
    said = load_driver.refusal(edited(packed_bert, tmp_path / "other", {key: NULL}))
    assert said.startswith("not served: ") and line in said and said.endswith(ELSEWHERE)
