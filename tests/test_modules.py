"""Settings by name pattern, embeddings on their own, and sizes of every width."""

import math

import pytest
import torch

import tritune
from families import FAMILIES
from tritune import Quantization, TrituneError
from tritune.checkpoints.size import size_bytes
from tritune.modeling.instrument import instrument_of
from tritune.modeling.layers import QuantEmbedding, QuantLinear, RowLinear
from tritune.modeling.module_bits import bits_of_modules
from tritune.quant import Binary, LearnedStep, Ternary, Uniform
from tritune.recipes import load_recipe, to_yaml

BERT = FAMILIES["bert"]
LAYER = "bert.encoder.layer"


def prepared(**values) -> torch.nn.Module:
    return tritune.prepare(BERT.build(), Quantization(**values))


def bits(model: torch.nn.Module, name: str) -> tuple[int | None, int | None]:
    module = model.get_submodule(name)
    quantizers = (module.weight_quantizer, getattr(module, "input_quantizer", None))
    return tuple(quantizer and quantizer.bits for quantizer in quantizers)


def test_the_first_pattern_that_matches_wins():
    model = prepared(
        modules={
            f"{LAYER}.0.*.query": {"weight_bits": 8},
            f"{LAYER}.0.*": {"weight_bits": 1, "activation_bits": 4},
            "*.pooler.*": {"weight_bits": None, "activation_bits": None},
        }
    )
    assert bits(model, f"{LAYER}.0.attention.self.query") == (8, 8)
    assert bits(model, f"{LAYER}.0.attention.self.key") == (1, 4)
    assert bits(model, f"{LAYER}.1.attention.self.query") == (2, 8)
    assert bits(model, "bert.pooler.dense") == (None, None)
    assert [state.query.bits for state in instrument_of(model).states][:2] == [4, 8]


def test_a_pattern_decides_over_the_float_classifier():
    """Scales per token make answers independent of batch mates; there the float classifier goes row by row."""
    for pattern, kind in (("*", RowLinear), ("*.layer.*", torch.nn.Linear)):
        quantization = Quantization(modules={pattern: {"activation_granularity": "token"}})
        assert type(tritune.prepare(FAMILIES["bert"].build(), quantization).classifier) is kind


def test_a_pattern_keeps_what_it_does_not_set():
    model = prepared(
        weight_granularity="row", weight_clip=1.5, modules={"*.query": {"weight_bits": 4}, "*.key": {"weight_clip": 2}}
    )
    self_attention = model.get_submodule(f"{LAYER}.0.attention.self")
    assert self_attention.query.weight_quantizer == Uniform(4, "row", 1.5)
    assert self_attention.key.weight_quantizer == Ternary("row", 2)
    assert self_attention.value.weight_quantizer == Ternary("row", 1.5)


def test_weights_and_activations_are_clipped_apart():
    model = prepared(weight_clip=None, activation_clip=3.0, modules={"*.key": {"activation_clip": None}})
    query, key = (model.get_submodule(f"{LAYER}.0.attention.self.{name}") for name in ("query", "key"))
    assert query.weight_quantizer.clip == key.weight_quantizer.clip == math.inf
    assert query.input_quantizer.clip == 3.0 and key.input_quantizer.clip == math.inf
    assert model.get_submodule("bert.embeddings.word_embeddings").weight_quantizer.clip == math.inf


def test_a_named_quantizer_gives_way_where_it_does_not_serve_the_bits():
    model = prepared(
        weight_bits=4, weight_quantizer="lsq", modules={"*.query": {"weight_bits": 1}, "*.key": {"weight_bits": 8}}
    )
    self_attention = model.get_submodule(f"{LAYER}.0.attention.self")
    assert isinstance(self_attention.query.weight_quantizer, Binary)
    assert isinstance(self_attention.key.weight_quantizer, LearnedStep)
    assert bits(model, "bert.embeddings.word_embeddings") == (4, None)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, (2, 2)),
        ({"embedding_bits": 8}, (2, 8)),
        ({"embedding_bits": None}, (2, None)),
        ({"weight_bits": None, "embedding_bits": 4}, (None, 4)),
        ({"weight_bits": 4, "weight_quantizer": "lsq"}, (4, 4)),
        ({"weight_bits": 1}, (1, 1)),
        ({"modules": {"*word_embeddings": {"weight_bits": 8}}}, (2, 8)),
    ],
    ids=str,
)
def test_embeddings_have_their_own_setting(values, wanted):
    model = prepared(**values)
    table = model.get_submodule("bert.embeddings.word_embeddings")
    assert (
        bits(model, f"{LAYER}.0.attention.self.query")[0],
        bits(model, "bert.embeddings.word_embeddings")[0],
    ) == wanted
    inherits = values.get("weight_quantizer") == "lsq"
    assert isinstance(table.weight_quantizer, LearnedStep) == inherits


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"*.nowhere": {"weight_bits": 4}}, r"'\*.nowhere' matches no quantized module"),
        ({"classifier": {"weight_bits": 4}}, "'classifier' matches no quantized module"),
        ({"*": {"weight_bits": 4}, "*.query": {"weight_bits": 8}}, r"'\*.query' matches only modules that an earlier"),
    ],
    ids=str,
)
def test_a_pattern_that_changes_nothing_is_refused(modules, message):
    model = BERT.build()
    with pytest.raises(TrituneError, match=message):
        tritune.prepare(model, Quantization(modules=modules))
    assert not any(isinstance(module, QuantLinear | QuantEmbedding) for module in model.modules())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modules": 3}, "modules must be a mapping"),
        ({"modules": {3: {"weight_bits": 4}}}, "a pattern must be text"),
        ({"modules": {"*": 4}}, "must be a mapping with some of the keys"),
        ({"modules": {"*": {}}}, "must be a mapping with some of the keys"),
        ({"modules": {"*": {"layers": [0]}}}, "must be a mapping with some of the keys"),
        ({"modules": {"*": {"weight_bits": 9}}}, r"modules: '\*': weight_bits must be a whole number"),
        ({"modules": {"*": {"weight_bits": 4, "weight_quantizer": "twn"}}}, "twn does not support weight_bits 4"),
        ({"embedding_bits": "most"}, "embedding_bits must be a whole number from 1 to 8, null for float, or same"),
        (
            {"embedding_bits": 4, "embedding_quantizer": "twn"},
            "embedding_quantizer twn does not support embedding_bits 4",
        ),
        ({"activation_quantizer": "twn"}, "activation_quantizer must be one of"),
        ({"activation_bits": 6, "activation_quantizer": "min_max"}, "min_max does not support activation_bits 6"),
        ({"activation_quantizer": "lsq", "activation_granularity": "token"}, "needs activation_granularity tensor"),
        ({"weight_bits": 8, "weight_quantizer": "pact"}, "weight_quantizer must be one of"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_by_name(values, message):
    with pytest.raises(TrituneError, match=message):
        Quantization(**values)


@pytest.mark.parametrize(
    ("name", "weight_bits", "activation_bits"),
    [("W2A8", 2, 8), ("W2A4", 2, 4), ("W4A8", 4, 8), ("W8A8", 8, 8), ("W1A8", 1, 8), ("W3A8", 3, 8), ("W4", 4, None)],
)
def test_a_mix_of_bits_is_one_line(name, weight_bits, activation_bits, tmp_path):
    values = f"weight_bits: {weight_bits}\nactivation_bits: {'null' if activation_bits is None else activation_bits}\n"
    (tmp_path / "mine.yaml").write_text(f"base: ti-g\n{values}")
    model = tritune.prepare(BERT.build(), load_recipe(tmp_path / "mine.yaml").section(Quantization))
    widths = {(row.weight_bits, row.activation_bits) for row in bits_of_modules(model)}
    # Linears; the word embedding, which has no input to quantize; what stays float.
    assert widths == {(weight_bits, activation_bits), (weight_bits, None), (None, None)}


def test_modules_from_the_command_line_and_back(tmp_path):
    recipe = load_recipe("ti-g", ["modules={'*.0.*': {weight_bits: 4, activation_bits: null}, '*': {weight_clip: 2}}"])
    assert list(recipe.modules) == ["*.0.*", "*"]
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(recipe))
    assert load_recipe(path) == recipe
    with pytest.raises(TrituneError, match="modules must be a mapping or null"):
        load_recipe("ti-g", ["modules=[3]"])


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["embeddings=false", "embedding_bits=8"], "embedding_bits"),
        (["embedding_bits=null", "embedding_granularity=tensor"], "embedding_granularity"),
        (["weight_bits=4", "weight_quantizer=lsq", "activation_quantizer=lsq", "activation_clip=2"], "activation_clip"),
        (["weight_bits=4", "weight_quantizer=lsq", "weight_clip=null"], "weight_clip"),
        (["activation_bits=null", "activation_clip=null"], "activation_clip"),
        (["learned_scale_learning_rate=1e-3"], "learned_scale_learning_rate"),
        (["weight_bits=null", "embedding_bits=4", "threshold_factor=0.5"], "threshold_factor"),
    ],
)
def test_unused_keys_are_errors(overrides, key):
    with pytest.raises(TrituneError, match=f"{key} would change nothing"):
        load_recipe("ti-g", overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["weight_bits=null", "modules={'*.query': {weight_bits: 4}}", "weight_granularity=row"],
        ["weight_bits=4", "modules={'*.query': {weight_bits: 2}}", "threshold_factor=0.5"],
        ["modules={'*.query': {activation_quantizer: pact}}", "learned_scale_learning_rate=1e-3"],
    ],
    ids=str,
)
def test_a_key_that_only_a_pattern_uses_is_used(overrides):
    load_recipe("ti-g", overrides)


WIDTHS = {
    "bwn": ({"weight_bits": 1}, 1, 1),
    "elastic": ({"weight_bits": 1, "weight_quantizer": "elastic_binary"}, 1, 1),
    "twn": ({}, 2, 1),
    "quaternary": ({"weight_quantizer": "quaternary"}, 2, 1),
    "seq2": ({"weight_quantizer": "seq"}, 2, 1),
    "seq3": ({"weight_bits": 3, "weight_quantizer": "seq"}, 3, 1),
    "uniform4": ({"weight_bits": 4}, 4, 1),
    "lsq4": ({"weight_bits": 4, "weight_quantizer": "lsq"}, 4, 1),
    "clipped4": ({"weight_bits": 4, "weight_quantizer": "clipped_uniform"}, 5, 1),
    "uniform8": ({"weight_bits": 8}, 8, 1),
    "min_max8": ({"weight_bits": 8, "weight_quantizer": "min_max"}, 8, 2),
}


@pytest.mark.parametrize("granularity", ["tensor", "row"])
@pytest.mark.parametrize(("values", "code_bits", "numbers"), WIDTHS.values(), ids=WIDTHS)
def test_sizes_of_every_width(values, code_bits, numbers, granularity):
    model = prepared(**values, weight_granularity=granularity)
    expected, quantized = 0, set()
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear | QuantEmbedding):
            rows = module.weight.shape[0] if granularity == "row" or isinstance(module, QuantEmbedding) else 1
            expected += math.ceil(module.weight.numel() * code_bits / 8) + 4 * numbers * rows
            quantized.add(f"{name}.weight")
    for name, parameter in model.named_parameters():
        if name not in quantized and ".weight_quantizer." not in name:
            expected += 4 * parameter.numel()
    assert size_bytes(model) == expected


def test_the_plan_names_the_layers_that_differ():
    rows = {row.name: row for row in bits_of_modules(prepared(modules={"*.1.*": {"weight_bits": 8}}))}
    assert rows[f"{LAYER}.1.attention.self.query"].weight_bits == 8
    others = ",".join(str(i) for i in range(len(BERT.build().bert.encoder.layer)) if i != 1)
    assert rows[f"{LAYER}.{others}.attention.self.query"].weight_bits == 2
    assert f"{LAYER}.*.attention.self.query" not in rows
    assert f"{LAYER}.*.attention.self.query" in {row.name for row in bits_of_modules(prepared())}
