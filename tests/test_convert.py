"""What was trained is what ships: packed models answer bit for bit as their QAT models, and a changed bit shows."""

import copy
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import tritune
from combinations import crossed
from families import FAMILIES, Family
from test_packing import CASES, weights
from test_quantizer_laws import started
from tritune import Quantization, TrituneError
from tritune.checkpoints.load import load_pretrained
from tritune.checkpoints.pack_modules import packed_modules
from tritune.checkpoints.packed import PackedEmbedding, PackedLinear
from tritune.checkpoints.packing import STORED_BITS, pack
from tritune.checkpoints.size import size_bytes, sizes_by_part
from tritune.compute import held
from tritune.modeling.layers import QuantEmbedding, QuantLinear
from tritune.modeling.module_bits import bits_of_modules
from tritune.quant import Granularity, LearnedStep, Ternary, Uniform

TENSOR, ROW, TOKEN = Granularity.TENSOR, Granularity.ROW, Granularity.TOKEN
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
DEPLOY = Quantization(weight_granularity="row", activation_granularity="token")
QUANTIZATIONS = {
    "default": Quantization(),
    "deploy": DEPLOY,
    "least_squares": Quantization(weight_quantizer="least_squares", embedding_granularity="tensor"),
    "token": Quantization(activation_granularity="token"),
    **{f"{bits} bits": Quantization(weight_bits=bits) for bits in range(3, 9)},
    "8 bits deploy": Quantization(weight_bits=8, weight_granularity="row", activation_granularity="token"),
    "weights_only": Quantization(weight_bits=4, weight_granularity="row", activation_bits=None, classifier=True),
    "activations_only": Quantization(weight_bits=None, activation_bits=4, activation_clip=1.5),
    "parts": Quantization(ffn_in=False, embeddings=False, attention_products=False, threshold_factor=0.5),
    "layers": Quantization(layers=(1,)),
    "learned": Quantization(
        weight_bits=4, weight_quantizer="lsq", weight_granularity="row", activation_quantizer="lsq", classifier=True
    ),
    "binary": Quantization(
        weight_bits=1, weight_quantizer="elastic_binary", embedding_bits=3, activation_quantizer="moving_min_max"
    ),
    "odd": Quantization(weight_quantizer="seq", weight_granularity="row", activation_granularity="token"),
    "four levels": Quantization(
        weight_quantizer="quaternary", weight_granularity="row", activation_granularity="token", weight_clip=None
    ),
    "patterns": Quantization(modules={"*.0.*": {"weight_bits": 8, "activation_quantizer": "pact"}}),
}
# Every quantizer that can be packed, at every width, with either granularity.
OF_WEIGHTS = {
    name: Quantization(
        weight_bits=bits, weight_quantizer=quantizer, weight_granularity=granularity, embedding_granularity=granularity
    )
    for name, (quantizer, bits, granularity) in CASES.items()
}
LEARNED = [key for key, value in QUANTIZATIONS.items() if key in ("learned", "binary", "odd", "patterns")]


def student(family: Family, quantization: Quantization | None = None, seed: int = 0) -> nn.Module:
    if quantization is not None and quantization.layers and family.name == "albert":
        quantization = Quantization(pooler=False)
    return tritune.prepare(family.build(seed), quantization).eval()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# -- layers


@pytest.mark.parametrize("inputs", [Uniform(8), Uniform(8, TOKEN), None], ids=["tensor", "token", "float"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@torch.no_grad()
def test_a_packed_linear_is_its_quantized_twin(case, inputs):
    for seed in range(5):
        torch.manual_seed(seed)
        for weight in weights().values():
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.weight.copy_(weight)
            twin = QuantLinear.from_float(linear, started(case, linear.weight), inputs)
            packed = PackedLinear.from_quantized(twin)
            values = 2 * torch.randn(4, 3, weight.shape[1])
            assert torch.equal(packed(values), twin(values))
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(packed(values), twin(values))
            assert twin.weight is linear.weight and packed.weight.dtype is torch.uint8


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@torch.no_grad()
def test_a_packed_embedding_is_its_quantized_twin_and_unpacks_only_what_is_asked_for(case, monkeypatch):
    ids = torch.tensor([[3, 0, 3], [6, 2, 1]])
    for name, weight in weights().items():
        if len(weight) == 7 and name != "bfloat16":
            twin = QuantEmbedding.from_float(nn.Embedding(7, 33, _weight=weight, padding_idx=0), started(case, weight))
            packed = PackedEmbedding.from_quantized(twin)
            assert torch.equal(packed(ids), twin(ids))
    shapes = []
    unpacked = "tritune.checkpoints.packed.unpack"
    monkeypatch.setattr(unpacked, lambda *args: shapes.append(args[0].shape) or torch.zeros(2, 3, 33))
    packed(ids)
    assert [shape[:2] for shape in shapes] == [ids.shape]


@torch.no_grad()
def test_held_weights_are_unpacked_once(monkeypatch):
    calls = []
    own = tritune.checkpoints.packed.unpack
    monkeypatch.setattr("tritune.checkpoints.packed.unpack", lambda *args: calls.append(1) or own(*args))
    layer = PackedLinear.from_quantized(QuantLinear.from_float(nn.Linear(8, 4), Uniform(3, ROW), Uniform()))
    values = torch.randn(2, 8)
    with held.weights_held():
        first = layer(values)
        assert torch.equal(layer(values), first) and len(calls) == 1
        layer.weight_scale.mul_(2)
        assert not torch.equal(layer(values), first) and len(calls) == 2
        layer.weight_scale.mul_(0.5)
        assert torch.equal(layer(values), first) and len(calls) == 3
    layer(values)
    layer(values)
    assert len(calls) == 5


def test_a_packed_layer_is_exported_whole():
    """The graph unpacks: the exported program holds the bytes, not the values."""
    layer = PackedLinear.from_quantized(QuantLinear.from_float(nn.Linear(8, 4), Ternary(ROW), Uniform()))
    values = torch.randn(3, 8)
    with torch.no_grad():
        program = torch.export.export(layer, (values,))
        torch.testing.assert_close(program.module()(values), layer(values), rtol=1e-6, atol=1e-6)
    assert program.state_dict["weight"].dtype is torch.uint8


# -- models


@pytest.mark.parametrize("quantization", QUANTIZATIONS.values(), ids=QUANTIZATIONS)
@every_family
@torch.no_grad()
def test_packed_logits_are_those_of_the_qat_model(family, quantization):
    model, batch = student(family, quantization), family.batch()
    expected, names = model(**batch).logits, set(model.state_dict())
    packed = tritune.convert(model)
    assert packed is model and not packed.training
    assert torch.equal(packed(**batch).logits, expected)
    assert {name for name in names if ".weight_quantizer." not in name} <= set(packed.state_dict())
    assert not any(".weight_quantizer." in name for name in packed.state_dict())


COMING_BACK = {
    name: QUANTIZATIONS[name] for name in ("default", "deploy", "3 bits", "weights_only", "layers", *LEARNED)
}


@pytest.mark.parametrize(("family", "quantization"), crossed(FAMILIES, COMING_BACK))
@torch.no_grad()
def test_a_packed_checkpoint_comes_back(family, quantization, tmp_path):
    batch, packed = family.batch(), tritune.convert(student(family, quantization))
    expected = packed(**batch).logits
    packed.save_pretrained(tmp_path / "one")
    loaded = family.loader.from_pretrained(tmp_path / "one")
    assert type(loaded) is family.model and not loaded.training
    assert torch.equal(loaded(**batch).logits, expected)
    assert {name: str(m) for name, m in packed_modules(loaded).items()} == {
        name: str(m) for name, m in packed_modules(packed).items()
    }
    loaded.save_pretrained(tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    "quantization", [Quantization(), DEPLOY, Quantization(weight_bits=4)], ids=["tensor", "token", "4"]
)
@torch.no_grad()
def test_over_many_seeds(quantization):
    family = FAMILIES["bert"]
    for seed in range(25):
        model, batch = student(family, quantization, seed), family.batch()
        expected = model(**batch).logits
        assert torch.equal(tritune.convert(model)(**batch).logits, expected)


@pytest.mark.parametrize("quantization", [Quantization(), DEPLOY], ids=["tensor", "token"])
@every_family
@torch.no_grad()
def test_a_mutant_shows(family, quantization):
    """One doubled scale, or one flipped code of a row that is used, in any packed weight: the logits are others."""
    model, batch = student(family, quantization), family.batch()
    expected = model(**batch).logits
    packed = tritune.convert(model)
    for name, module in packed_modules(packed).items():
        kept = module.weight_scale.clone(), module.weight.clone()
        module.weight_scale.mul_(2)
        assert not torch.equal(packed(**batch).logits, expected), f"{name}: doubled scale"
        module.weight_scale.copy_(kept[0])
        row = batch["input_ids"][0, 0] if isinstance(module, nn.Embedding) else 0
        for column in range(module.columns):
            # 01 (code 0) becomes 10, 10 and 00 become 01: another code in any case.
            place = 2 * (column % 4)
            field = (module.weight[row, column // 4].item() >> place) & 3
            module.weight[row, column // 4] += ((2 if field == 1 else 1) - field) * 2**place % 256
            changed = not torch.equal(packed(**batch).logits, expected)
            module.weight.copy_(kept[1])
            if changed:
                break
        assert changed, f"{name}: flipped code"
        assert torch.equal(packed(**batch).logits, expected)


@pytest.mark.parametrize("quantization", OF_WEIGHTS.values(), ids=OF_WEIGHTS)
@torch.no_grad()
def test_every_quantizer_ships_what_was_trained(quantization, tmp_path):
    """Packed, saved, loaded and saved again; then a code or a scale is changed, or a code that does not exist comes."""
    family = FAMILIES["bert"]
    model, batch = student(family, quantization), family.batch()
    expected = model(**batch).logits
    packed = tritune.convert(model)
    assert torch.equal(packed(**batch).logits, expected)
    packed.save_pretrained(tmp_path / "one")
    loaded = tritune.load(tmp_path / "one")
    assert torch.equal(loaded(**batch).logits, expected)
    loaded.save_pretrained(tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name
    name, module = "query", loaded.bert.encoder.layer[0].attention.self.query
    module.check(name)
    bits, every, kept = module.weight_quantizer.bits, module.weight_quantizer.codes, module.weight.clone()
    module.weight_scale.mul_(2)
    assert not torch.equal(loaded(**batch).logits, expected), "doubled scale"
    module.weight_scale.mul_(0.5)
    codes = module.codes
    codes[0] = torch.tensor([every[0] if code != every[0] else every[-1] for code in codes[0].tolist()])
    module.weight.copy_(pack(codes, bits, every))
    assert not torch.equal(loaded(**batch).logits, expected), "a changed row of codes"
    module.weight.copy_(kept)
    assert torch.equal(loaded(**batch).logits, expected)
    if len(every) < 2 ** STORED_BITS[bits]:  # a field is left over
        module.weight.fill_(255 if len(every) == 3 else 0)
        with pytest.raises(TrituneError, match=f"{name}: holds codes outside {every[0]} to {every[-1]}"):
            module.check(name)


UNPACKABLE = {
    "clipped_uniform": Quantization(weight_bits=4, weight_quantizer="clipped_uniform"),
    "min_max": Quantization(weight_bits=8, weight_quantizer="min_max"),
}


@pytest.mark.parametrize("name", UNPACKABLE)
def test_what_has_too_many_codes_or_an_offset_is_refused_and_left_alone(name):
    model = student(FAMILIES["bert"], UNPACKABLE[name])
    before = state(model)
    with pytest.raises(TrituneError, match=rf"^bert\.\S+: weights of the quantizer {name} cannot be packed; [^\n]+$"):
        tritune.convert(model)
    assert not packed_modules(model) and not model.config.quantization_config.is_packed
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@torch.no_grad()
def test_what_activation_quantizers_learned_ships_too(tmp_path):
    """Trained scales are saved, checked and loaded; a damaged or a missing one is refused."""
    family = FAMILIES["bert"]
    model, batch = student(family, QUANTIZATIONS["learned"]), family.batch()
    for seed, quantizer in enumerate(module for module in model.modules() if isinstance(module, LearnedStep)):
        quantizer.scale.mul_(1 + 0.01 * seed)
    expected = model(**batch).logits
    packed = tritune.convert(model)
    packed.save_pretrained(tmp_path)
    learned = {f"{kind}_quantizer.scale" for kind in ("input", "query", "key", "attention_probs", "value")}
    names = {name for name in packed.state_dict() if name.rpartition(".")[0].endswith("_quantizer")}
    assert {".".join(name.split(".")[-2:]) for name in names} == learned
    assert names <= set(packed.config.quantization_config.checksums)
    loaded = tritune.load(tmp_path)
    assert torch.equal(loaded(**batch).logits, expected)
    assert {name: parameter.dtype for name, parameter in loaded.named_parameters() if name in names} == dict.fromkeys(
        names, torch.float32
    )
    file, name = tmp_path / "model.safetensors", sorted(names)[0]
    tensors = load_file(file)
    save_file(tensors | {name: 2 * tensors[name]}, file, {"format": "pt"})
    with pytest.raises(TrituneError, match=f"{name} is damaged"):
        tritune.load(tmp_path)
    loaded.get_parameter(name).fill_(torch.nan)
    loaded.save_pretrained(tmp_path)
    for loader in (tritune.load, AutoModelForSequenceClassification.from_pretrained):
        with pytest.raises(TrituneError, match=f"{name}: holds NaN"):
            loader(tmp_path)
    owner, _, own = name.rpartition(".")
    del loaded.get_submodule(owner)._parameters[own]
    loaded.save_pretrained(tmp_path)
    for loader in (tritune.load, AutoModelForSequenceClassification.from_pretrained):
        with pytest.raises(TrituneError, match=f"{name} is not in the checkpoint"):
            loader(tmp_path)


@pytest.mark.parametrize(("name", "tolerance"), [("default", 0.05), ("learned", 0.3)])
@torch.no_grad()
def test_convert_in_half_precision(name, tolerance, tmp_path):
    """The rest is rounded to 11 bits and computed in; scales and codes are not touched.

    Learned steps are coarse in a model that was not trained, so that a rounding that flips a code shows more.
    """
    family = FAMILIES["bert"]
    model, batch = student(family, QUANTIZATIONS[name]), family.batch()
    expected, whole = model(**batch).logits, tritune.convert(copy.deepcopy(model))
    half = tritune.convert(model, torch.float16)
    half.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.dtype is torch.float16 and loaded.classifier.bias.dtype is torch.float16
    for name, module in packed_modules(whole).items():
        for twin in (half.get_submodule(name), loaded.get_submodule(name)):
            assert torch.equal(twin.weight, module.weight) and torch.equal(twin.weight_scale, module.weight_scale)
    assert torch.equal(loaded(**batch).logits, half(**batch).logits)
    wide = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    assert wide.dtype is torch.float32
    torch.testing.assert_close(wide(**batch).logits, expected, rtol=tolerance, atol=tolerance)
    assert size_bytes(half) < size_bytes(whole)


def test_sizes_are_those_of_the_file(tmp_path):
    for quantization in (Quantization(), DEPLOY, Quantization(weight_bits=5, classifier=True)):
        model = student(FAMILIES["bert"], quantization)
        rows = {row.name: row for row in bits_of_modules(model)}
        packed = tritune.convert(model)
        assert {row.name: row for row in bits_of_modules(packed)} == rows
        packed.save_pretrained(tmp_path)
        parts = sizes_by_part(packed)
        stored = sum(tensor.nbytes for tensor in packed.state_dict().values())
        assert sum(part.size_bytes for part in parts) == size_bytes(packed) == stored
        assert sum(part.parameters for part in parts) == FAMILIES["bert"].build().num_parameters()


# -- convert and load


def test_what_cannot_be_converted_is_refused_and_left_alone():
    family = FAMILIES["bert"]
    model = family.build()
    with pytest.raises(TrituneError, match="float model"):
        tritune.convert(model)
    model = student(family)
    before = state(model)
    with pytest.raises(TrituneError, match="dtype"):
        tritune.convert(model, torch.bfloat16)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    tritune.convert(model)
    with pytest.raises(TrituneError, match="already packed"):
        tritune.convert(model)
    with pytest.raises(TrituneError, match="already prepared"):
        tritune.prepare(model)


def test_a_weight_shared_with_a_float_module_is_refused():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = tritune.prepare(BertForMaskedLM(BertConfig(vocab_size=40, **sizes)))
    before = state(model)
    with pytest.raises(TrituneError, match="shares its weight with cls"):
        tritune.convert(model)
    assert state(model).keys() == before.keys()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A packed folder, and the logits of the model that was packed."""
    folder, family = tmp_path_factory.mktemp("bert"), FAMILIES["bert"]
    model = student(family)
    with torch.no_grad():
        logits = model(**family.batch()).logits
    tritune.convert(model).save_pretrained(folder)
    return folder, logits


@torch.no_grad()
def test_load_takes_the_class_that_was_saved(bert, tmp_path):
    folder, logits = bert
    loaded, batch = tritune.load(folder), FAMILIES["bert"].batch()
    assert torch.equal(loaded(**batch).logits, logits)
    student(FAMILIES["vit"]).save_pretrained(tmp_path / "vit")
    assert type(tritune.load(tmp_path / "vit")) is FAMILIES["vit"].model
    FAMILIES["bert"].build().save_pretrained(tmp_path / "float")
    with pytest.raises(TrituneError, match="not a checkpoint of tritune"):
        tritune.load(tmp_path / "float")
    tritune.convert(student(FAMILIES["zorp"])).save_pretrained(tmp_path / "zorp")
    with pytest.raises(TrituneError, match="orp"):
        tritune.load(tmp_path / "zorp")


def test_load_refuses_what_from_pretrained_would_make_up(bert, tmp_path):
    """A file with one tensor more, or a head that is not in it, all checksums right."""
    for change, message in (
        (lambda model: model.register_buffer("extra", torch.ones(2)), "extra: unexpected"),
        (lambda model: delattr(model.classifier, "bias"), "classifier.bias: missing"),
    ):
        model = tritune.load(bert[0])
        change(model)
        model.save_pretrained(tmp_path)
        for loader in (tritune.load, partial(load_pretrained, AutoModelForSequenceClassification)):
            with pytest.raises(TrituneError, match=message.replace(".", r"\.")):
                loader(tmp_path)


@torch.no_grad()
def test_other_auto_classes(bert):
    folder, _ = bert
    batch = FAMILIES["bert"].batch()
    base = AutoModel.from_pretrained(folder)
    expected = tritune.load(folder).bert(**batch)
    assert torch.equal(base(**batch).pooler_output, expected.pooler_output)
    # Asked for any attention, a packed model has its own.
    eager = AutoModel.from_pretrained(folder, attn_implementation="eager")
    assert torch.equal(eager(**batch).pooler_output, expected.pooler_output)
    with pytest.raises(TrituneError, match="no packed weight"):
        AutoModelForMaskedLM.from_pretrained(folder)


def test_a_class_that_wants_a_packed_weight_that_is_not_there_is_refused(tmp_path):
    """RoBERTa's plain encoder has a pooler, its classifier has none; random codes would be no pooler."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = RobertaForSequenceClassification(RobertaConfig(vocab_size=40, max_position_embeddings=20, **sizes))
    tritune.convert(tritune.prepare(model)).save_pretrained(tmp_path)
    assert isinstance(tritune.load(tmp_path), RobertaForSequenceClassification)
    with pytest.raises(TrituneError, match=r"pooler\.dense has no packed weight .* load it with the class it was"):
        AutoModel.from_pretrained(tmp_path)


@torch.no_grad()
def test_a_copy_and_a_cast_are_packed_models_too(bert):
    folder, logits = bert
    batch, model = FAMILIES["bert"].batch(), tritune.load(folder)
    twin = copy.deepcopy(model)
    for module in packed_modules(model).values():
        module.weight_scale.mul_(2)
    assert torch.equal(twin(**batch).logits, logits)
    twin.to(torch.float64)
    assert twin.classifier.weight.dtype is torch.float64
    assert {module.weight_scale.dtype for module in packed_modules(twin).values()} == {torch.float32}
    torch.testing.assert_close(twin(**batch).logits, logits.double(), rtol=0.05, atol=0.05)
    assert torch.equal(twin.to(torch.float32)(**batch).logits, logits)
    assert tritune.instrument(twin) is twin and len(twin(**batch, output_trace=True).trace.layers) == 3
    with torch.inference_mode(), held.weights_held():
        assert torch.equal(twin(**batch).logits, logits)


def test_changed_on_purpose_and_saved_again(bert, tmp_path):
    model = tritune.load(bert[0])
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    with torch.no_grad():
        model.classifier.bias += 1
    model.save_pretrained(tmp_path)
    loaded = tritune.load(tmp_path)
    assert loaded.config.id2label[0] == "a" and torch.equal(loaded.classifier.bias, model.classifier.bias)


def test_a_packed_model_has_nothing_to_train(bert):
    """What happens to who tries: test_packed_manners.py."""
    model = tritune.load(bert[0])
    assert not model.hf_quantizer.is_trainable and not model.hf_quantizer.is_qat_trainable
    assert not any(module.weight.requires_grad for module in packed_modules(model).values())
