"""What people do with a model of transformers works on a packed one, or is refused in one line and changes nothing."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

import tritune
from families import FAMILIES, LABELS, VOCABULARY, ZorpConfig, ZorpForWhatever
from tritune import Quantization, TrituneError
from tritune.checkpoints.pack_modules import packed_modules
from tritune.checkpoints.packed import PackedEmbedding
from tritune.modeling.layers import QuantEmbedding, QuantLinear, RowLinear

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
SURE = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DEPLOY = Quantization(weight_granularity="row", activation_granularity="token")
LSQ = {"weight_bits": 4, "weight_quantizer": "lsq", "activation_quantizer": "lsq"}
LEARNED, LEARNED_ROWS = Quantization(**LSQ, embedding_granularity="tensor"), Quantization(**LSQ)
QUANTIZATIONS = {"default": Quantization(), "deploy": DEPLOY, "learned": LEARNED}
every_quantization = pytest.mark.parametrize("quantization", QUANTIZATIONS.values(), ids=QUANTIZATIONS)


def bert() -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=VOCABULARY, num_labels=LABELS, max_position_embeddings=32, **SMALL, **SURE)
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3 if parameter.ndim > 1 else 0.1)
    return model


def student(quantization: Quantization | None = None) -> PreTrainedModel:
    return tritune.prepare(bert(), quantization).eval()


def batch() -> dict[str, torch.Tensor]:
    return FAMILIES["bert"].batch()


def rows() -> list[dict[str, torch.Tensor]]:
    inputs = batch()
    return [{name: value[row] for name, value in inputs.items()} | {"labels": torch.tensor(row)} for row in range(3)]


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(**batch()).logits


def trainer(model: PreTrainedModel, folder, **values) -> Trainer:
    given = {"report_to": "none", "use_cpu": True, "max_steps": 1, "save_strategy": "no", "disable_tqdm": True}
    arguments = TrainingArguments(folder, **given | values)
    return Trainer(model, arguments, train_dataset=rows(), eval_dataset=rows())


@pytest.fixture(params=["converted", "loaded"])
def packed(request, tmp_path) -> PreTrainedModel:
    model = tritune.convert(student())
    if request.param == "converted":
        return model
    model.save_pretrained(tmp_path / "packed")
    return AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")


# -- Trainer


def test_trainer_evaluates_and_predicts(packed, tmp_path):
    with torch.no_grad():
        expected = packed(**batch(), labels=torch.arange(3))
    before = state(packed)
    metrics = trainer(packed, tmp_path).evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected.loss.item(), rel=1e-6)
    predictions = trainer(packed, tmp_path).predict(rows())
    assert torch.equal(torch.from_numpy(predictions.predictions), expected.logits)
    assert predictions.label_ids.tolist() == [0, 1, 2] and same(state(packed), before)


@pytest.mark.parametrize("values", [{}, {"bf16": True}, {"gradient_accumulation_steps": 2}], ids=["plain", "bf16", "2"])
def test_trainer_does_not_train_it(packed, values, tmp_path):
    before, expected = state(packed), logits(packed)
    with pytest.raises(TrituneError, match=r"^this \w+ is packed and cannot be trained; train the QAT model[^\n]+$"):
        trainer(packed, tmp_path, **values).train()
    assert same(state(packed), before) and not packed.training
    assert all(parameter.grad is None for parameter in packed.parameters())
    if "bf16" not in values:  # Trainer has it compute in bfloat16 from then on, as it does with every model
        assert torch.equal(logits(packed), expected)
        assert "eval_loss" in trainer(packed, tmp_path).evaluate()


def test_no_other_loop_trains_it(packed):
    packed.train()
    with torch.no_grad():
        packed(**batch())
    with pytest.raises(TrituneError, match="cannot be trained"):
        packed(**batch())
    packed(**batch()).logits.sum().backward()  # in evaluation mode again: what a gradient is good for is not known


def test_a_frozen_one_under_a_head_that_is_trained(packed):
    packed.requires_grad_(False).train()
    head = nn.Linear(LABELS, 2)
    head(packed(**batch()).logits).sum().backward()
    assert head.weight.grad is not None


# -- new sizes


@pytest.mark.parametrize(
    "arguments",
    [{"new_num_tokens": 50}, {"new_num_tokens": 30}, {"pad_to_multiple_of": 64}],
    ids=["more", "less", "64"],
)
def test_a_packed_embedding_keeps_its_size(packed, arguments):
    before, expected = state(packed), logits(packed)
    with pytest.raises(TrituneError, match=r"^this \w+ is packed: resize the QAT model before `convert`[^\n]+$"):
        packed.resize_token_embeddings(**arguments)
    assert same(state(packed), before) and torch.equal(logits(packed), expected)
    assert packed.config.vocab_size == VOCABULARY


def test_its_own_size_is_no_new_one(packed):
    for arguments in ({}, {"new_num_tokens": VOCABULARY}, {"pad_to_multiple_of": 8}):
        assert packed.resize_token_embeddings(**arguments) is packed.get_input_embeddings()
    assert isinstance(packed.get_input_embeddings(), PackedEmbedding)
    own = inspect.signature(packed.resize_token_embeddings)
    assert own == inspect.signature(bert().resize_token_embeddings)


@pytest.mark.parametrize(
    "quantization", [*QUANTIZATIONS.values(), Quantization(embeddings=False)], ids=[*QUANTIZATIONS, "float"]
)
def test_a_qat_model_is_resized_and_still_converted(quantization, tmp_path):
    model = student(quantization)
    expected, kind = logits(model), type(model.get_input_embeddings())
    model.resize_token_embeddings(50)
    embedding = model.get_input_embeddings()
    assert type(embedding) is kind and embedding.weight.shape[0] == embedding.num_embeddings == 50
    assert (kind is QuantEmbedding) == quantization.embeddings
    assert torch.equal(logits(model), expected)
    model.save_pretrained(tmp_path / "qat")
    assert torch.equal(logits(tritune.load(tmp_path / "qat")), expected)
    assert torch.equal(logits(tritune.convert(model)), expected)
    model.save_pretrained(tmp_path / "packed")
    loaded = tritune.load(tmp_path / "packed", engine="reference")
    assert torch.equal(logits(loaded), expected) and loaded.config.vocab_size == 50


def test_rows_with_scales_of_their_own_neither_come_nor_go():
    model = student(LEARNED_ROWS)
    before, expected = state(model), logits(model)
    for size in (50, 30):
        with pytest.raises(TrituneError, match=r"^this \w+ learns a scale for each row [^\n]+ before `prepare`$"):
            model.resize_token_embeddings(size)
    assert same(state(model), before) and torch.equal(logits(model), expected)
    model.resize_token_embeddings(VOCABULARY)


@pytest.mark.parametrize("classifier", [False, True], ids=["float head", "quantized head"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@torch.no_grad()
def test_the_output_layer_of_a_language_model(tied, classifier, tmp_path):
    """transformers would put a plain Linear into the place of an untied one."""
    config = LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=1, tie_word_embeddings=tied, **SMALL)
    values = {"classifier": classifier, "weight_granularity": "row", "activation_granularity": "token"}
    model = tritune.prepare(LlamaForCausalLM(config), Quantization(**values)).eval()
    ids = batch()["input_ids"]
    expected = model(ids).logits
    model.resize_token_embeddings(50)
    head = model.get_output_embeddings()
    assert type(head) is (QuantLinear if classifier else RowLinear) and head.out_features == 50
    assert (head.weight is model.get_input_embeddings().weight) == tied
    found = model(ids).logits
    assert torch.equal(found[..., :VOCABULARY], expected) and found.shape[-1] == 50
    model.save_pretrained(tmp_path)
    assert torch.equal(tritune.load(tmp_path)(ids).logits, found)
    if classifier or not tied:  # a weight that is float in one place and packed in another is refused by `convert`
        assert torch.equal(tritune.convert(model)(ids).logits, found)
        if classifier:
            with pytest.raises(TrituneError, match="is packed: resize"):
                model.resize_token_embeddings(60)


def test_a_packed_output_layer_keeps_its_size_too():
    config = BertConfig(vocab_size=VOCABULARY, tie_word_embeddings=False, **SMALL)
    model = tritune.prepare(BertForMaskedLM(config), Quantization(embeddings=False, classifier=True))
    before = state(tritune.convert(model))
    with pytest.raises(TrituneError, match="is packed: resize"):
        model.resize_token_embeddings(50)
    assert same(state(model), before)


# -- graphs


def traced(model: nn.Module, **options) -> torch.jit.ScriptModule:
    model.config.return_dict = False
    return torch.jit.trace(model, tuple(batch().values()), **options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@every_quantization
@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
def test_torch_jit_does_not_trace_a_packed_model(quantization, grad):
    model = tritune.convert(student(quantization))
    with (
        torch.set_grad_enabled(grad),
        pytest.raises(TrituneError, match=r"^torch\.jit\.trace cannot [^\n]*`tritune export`"),
    ):
        traced(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@every_quantization
def test_torch_jit_traces_a_qat_model_without_gradients(quantization):
    model = student(quantization)
    expected = logits(model)
    with torch.no_grad():
        graph = traced(model)
        assert torch.equal(graph(*batch().values())[0], expected)
        if quantization is not LEARNED:  # its graph holds functions of Python
            file = io.BytesIO()
            torch.jit.save(graph, file)
            file.seek(0)
            assert torch.equal(torch.jit.load(file)(*batch().values())[0], expected)
    if quantization is LEARNED:
        assert torch.equal(traced(model)(*batch().values())[0], expected)
        return
    with pytest.raises(TrituneError, match=r"^torch\.jit\.trace cannot [^\n]*torch\.no_grad\(\)[^\n]*`tritune export`"):
        traced(model)


@pytest.mark.parametrize("quantization", [Quantization(), DEPLOY], ids=["default", "deploy"])
@torch.no_grad()
def test_torch_export(quantization):
    """The whole model, saved and loaded; sums may be taken in another order."""
    model = tritune.convert(student(quantization))
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (), batch()), file)
    file.seek(0)
    program = torch.export.load(file)
    torch.testing.assert_close(program.module()(**batch()).logits, logits(model), rtol=1e-5, atol=1e-5)
    codes = program.state_dict["bert.encoder.layer.0.attention.self.query.weight"]
    assert codes.dtype is torch.uint8 and torch.equal(
        codes, packed_modules(model)["bert.encoder.layer.0.attention.self.query"].weight
    )


@torch.no_grad()
def test_torch_compile():
    """One layer and no compiler behind the graphs: finding them takes seconds as it is."""
    model = tritune.convert(tritune.prepare(ZorpForWhatever(ZorpConfig(grumbles=1, num_labels=LABELS)).eval()))
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(logits(compiled), logits(model), rtol=1e-5, atol=1e-5)
    torch.compiler.reset()


# -- copies, dtypes and places


def through_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": through_torch_save,
    "deepcopy": copy.deepcopy,
}


@every_quantization
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@torch.no_grad()
def test_a_copy_is_a_packed_model(copied, quantization, tmp_path):
    model = tritune.convert(student(quantization))
    expected = logits(model)
    twin = copied(model)
    for module in packed_modules(model).values():
        module.weight_scale.mul_(2)
    assert torch.equal(logits(twin), expected) and not torch.equal(logits(model), expected)
    assert len(twin(**batch(), output_trace=True).trace.layers) == 1
    twin.save_pretrained(tmp_path)
    assert torch.equal(logits(tritune.load(tmp_path, engine="reference")), expected)
    with torch.enable_grad(), pytest.raises(TrituneError, match="cannot be trained"):
        twin.train()(**batch())
    with pytest.raises(TrituneError, match="is packed: resize"):
        twin.resize_token_embeddings(50)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quantization", [Quantization(), DEPLOY], ids=["default", "deploy"])
@torch.no_grad()
def test_loaded_in_half_precision(dtype, quantization, tmp_path):
    """Codes and scales are those of the file, the float rest is rounded, and what is computed is near."""
    model = tritune.convert(student(quantization))
    expected = logits(model)
    model.save_pretrained(tmp_path)
    cast = copy.deepcopy(model).to(dtype)
    for loader in (tritune.load, AutoModelForSequenceClassification.from_pretrained):
        loaded = loader(tmp_path, dtype=dtype)
        assert loaded.dtype is dtype and same(state(loaded), state(cast))
        assert logits(loaded).dtype is dtype and torch.equal(logits(loaded), logits(cast))
        torch.testing.assert_close(logits(loaded).float(), expected, rtol=0.1, atol=0.1)
    for name, module in packed_modules(loaded).items():
        own = packed_modules(model)[name]
        assert torch.equal(module.weight, own.weight) and torch.equal(module.weight_scale, own.weight_scale)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(tritune.load(tmp_path / "again", dtype=dtype)), logits(cast))


def test_a_loaded_model_is_cast_like_a_converted_one(packed):
    expected = logits(copy.deepcopy(packed).to(torch.float16))
    assert torch.equal(logits(packed.half()), expected) and packed.dtype is torch.float16
    assert packed.float().dtype is torch.float32


@pytest.mark.parametrize("place", ["cpu", "auto", {"": "cpu"}], ids=str)
def test_device_map(place, tmp_path):
    model = tritune.convert(student())
    model.save_pretrained(tmp_path / "one")
    loaded = tritune.load(tmp_path / "one", device_map=place)
    inputs = {name: value.to(loaded.device) for name, value in batch().items()}
    with torch.no_grad():
        found = loaded(**inputs).logits.cpu()
    torch.testing.assert_close(found, logits(model), rtol=1e-5, atol=1e-5)
    loaded.save_pretrained(tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize("size", ["50GB", "2KB"], ids=["one file", "shards"])
def test_saved_over_the_folder_it_was_loaded_from(size, tmp_path):
    model = tritune.convert(student())
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = tritune.load(tmp_path)
    with torch.no_grad():
        loaded.classifier.bias += 1
    for _ in range(2):
        loaded.save_pretrained(tmp_path, max_shard_size=size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (size == "2KB")
    found = tritune.load(tmp_path)
    assert same(state(found), state(loaded)) and torch.equal(logits(found), logits(loaded))
    if size == "50GB":
        assert torch.equal(load_file(tmp_path / "model.safetensors")["classifier.bias"], loaded.classifier.bias)
