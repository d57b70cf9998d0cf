"""The native engine under models of transformers: torch's answers, for the calls that it takes and for no others."""

import copy
import gc
import pickle
import weakref
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, DistilBertModel, PreTrainedModel

import tritune
from combinations import crossed
from engine_folders import BOUND, HEADS, save_reader, sentences, ties_noted
from engine_models import DEPLOY, FAMILIES, TERNARY, save_packed
from families import FAMILIES as OF_ANY_KIND
from test_threads import in_threads
from tritune import Quantization, TrituneError
from tritune.checkpoints import engine
from tritune.checkpoints.engine import NATIVE, PRODUCTS, REFERENCE
from tritune.checkpoints.native_product import Product
from tritune.checkpoints.pack_modules import packed_modules
from tritune.checkpoints.packed import PackedLinear
from tritune.engine import binding
from tritune.engine.model import Model
from tritune.inference.predict import predict_rows
from tritune.quant import Granularity, Uniform
from zoo import SERVED

if not binding.available():
    pytest.skip(binding.why_not(), allow_module_level=True)

SEQUENCE, TAGS, SPANS, BARE = HEADS
TOKENS, ROW, TOKEN = 9, Granularity.ROW, Granularity.TOKEN
Batch = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A function from a family and a head to a packed folder, each made once."""
    made: dict[tuple, Path] = {}

    def folder(family: str = "BERT", head: str = SEQUENCE, quantization: Quantization = DEPLOY) -> Path:
        key = family, head, str(quantization)
        if key not in made:
            names = SERVED[family].classes
            index = next(i for i, name in enumerate(names) if name.endswith(head))
            made[key] = save_packed(family, index, quantization, tmp_path_factory.mktemp("packed") / "model")
        return made[key]

    return folder


@pytest.fixture
def pair(folders) -> tuple[PreTrainedModel, PreTrainedModel]:
    """One BERT in the engine, and in torch."""
    return tritune.load(folders()), tritune.load(folders(), engine="reference")


def row(seed: int, lowest: int = 3) -> torch.Tensor:
    return torch.randint(lowest, 40, (1, TOKENS), generator=torch.Generator().manual_seed(seed))


MASKS = {
    "full": [1] * TOKENS,
    "right": [1] * 6 + [0] * 3,
    "left": [0] * 3 + [1] * 6,
    "holes": [1, 1, 0, 1, 0, 0, 1, 1, 0],
    "one": [1] + [0] * 8,
}


@torch.no_grad()
def clear_batch(reference: PreTrainedModel, kinds: list[str], pads: int | None = None, count: int = 4) -> Batch:
    """A batch with masks of some kinds in turn, of whose rows no value is near a tie; hidden tokens are `pads`."""
    rows = []
    for seed in range(400):
        mask = torch.tensor([MASKS[kinds[len(rows) % len(kinds)]]])
        ids = row(seed) if pads is None else torch.where(mask == 1, row(seed), pads)
        with ties_noted() as near:
            reference(input_ids=ids, attention_mask=mask)
        if not any(near):
            rows.append({"input_ids": ids, "attention_mask": mask})
        if len(rows) == count:
            return {name: torch.cat([one[name] for one in rows]) for name in rows[0]}
    raise AssertionError(f"of 400 rows only {len(rows)} are clear of ties")


def taken(model: PreTrainedModel, *args, **kwargs):
    """What a call gives; fails if torch computed it."""
    with mock.patch.object(type(model), "forward", side_effect=AssertionError("torch was asked")):
        return model(*args, **kwargs)


def left_to_torch(model: PreTrainedModel, *args, **kwargs):
    """What a call gives; fails if the engine computed it."""
    with (
        mock.patch.object(Model, "run", side_effect=AssertionError("the engine was asked")),
        mock.patch.object(Model, "run_images", side_effect=AssertionError("the engine was asked")),
    ):
        return model(*args, **kwargs)


def assert_same(found, expected, seen: torch.Tensor, bound: float = BOUND) -> None:
    """Outputs of a class, but for the tokens that the mask hides."""
    assert type(found) is type(expected) and list(found) == list(expected)
    for name in expected:
        one, other = found[name], expected[name]
        assert one.shape == other.shape and one.dtype == other.dtype
        if one.ndim > 1 and one.shape[:2] == seen.shape and name != "pooler_output":
            hidden = torch.finfo(torch.float32).min if name in ("start_logits", "end_logits") else 0
            assert (one[seen == 0] == hidden).all()
            one, other = one[seen == 1], other[seen == 1]
        assert (one - other).abs().max() < bound, name


# Whole models.


@pytest.mark.parametrize(
    ("family", "head"), crossed({name: name for name in FAMILIES if name != "ViT"}, {name: name for name in HEADS})
)
@torch.no_grad()
def test_the_answers_are_those_of_torch(family, head, folders):
    folder = folders(family, head)
    native, reference = tritune.load(folder, engine="native"), tritune.load(folder, engine="reference")
    assert (native.engine, reference.engine) == (NATIVE, REFERENCE)
    needs_first = head == SEQUENCE or getattr(reference, "pooler", None) is not None
    # The padding of this DistilBERT always lies at a tie.
    pads = None if family == "DistilBERT" else reference.config.pad_token_id
    for kinds, hidden in (
        (["full"], None),
        (["full", "right", "one"], pads),
        (["holes", "full"], None),
        *([] if needs_first else [(["left", "full"], pads)]),
    ):
        inputs = clear_batch(reference, kinds, hidden)
        assert_same(taken(native, **inputs), reference(**inputs), inputs["attention_mask"])
    inputs = clear_batch(reference, ["full"])
    assert_same(taken(native, inputs["input_ids"]), reference(inputs["input_ids"]), inputs["attention_mask"])


@torch.no_grad()
def test_token_types_and_other_dtypes_are_taken(pair):
    native, reference = pair
    inputs = clear_batch(reference, ["right", "holes"])
    inputs["token_type_ids"] = (torch.arange(TOKENS) > 3).long().expand(4, -1)
    expected = reference(**inputs).logits
    ids, mask, types = inputs.values()
    for given in ((ids, mask, types), (ids.int(), mask.bool(), types.int()), (ids, mask.to(torch.bfloat16), types)):
        assert (taken(native, *given).logits - expected).abs().max() < 100 * BOUND  # types were not asked for ties
    assert not torch.equal(native(ids, mask).logits, native(ids, mask, types).logits)


@pytest.mark.parametrize("head", ["ForImageClassification", "Model"])
@torch.no_grad()
def test_images(head, folders):
    folder = folders("ViT", head)
    native, reference = tritune.load(folder, engine="native"), tritune.load(folder, engine="reference")
    clear = []
    for seed in range(400):
        pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        with ties_noted() as near:
            reference(pixel_values=pixels)
        clear += [] if any(near) else [pixels]
    pixels = torch.cat(clear[:3])
    found = taken(native, pixel_values=pixels)
    assert_same(found, reference(pixel_values=pixels), torch.ones(3, 5))
    assert_same(taken(native, pixels), found, torch.ones(3, 5), bound=1e-30)
    left_to_torch(native, pixels, interpolate_pos_encoding=True)


@torch.no_grad()
def test_the_encoder_of_a_classifier(folders):
    native, reference = (AutoModel.from_pretrained(folders("DistilBERT")) for _ in range(2))
    engine.attach(native, folders("DistilBERT"), "native")
    assert type(native) is DistilBertModel and native.engine == NATIVE
    inputs = clear_batch(reference, ["left", "full"])
    assert_same(taken(native, **inputs), reference(**inputs), inputs["attention_mask"])


@torch.no_grad()
def test_a_tuple(pair):
    native, reference = pair
    inputs = clear_batch(reference, ["full"])
    (logits,) = taken(native, **inputs, return_dict=False)
    assert torch.equal(logits, native(**inputs).logits)
    native.config.return_dict = False
    assert torch.equal(taken(native, **inputs)[0], logits)
    assert torch.equal(taken(native, **inputs, return_dict=True).logits, logits)


# Modules.


@pytest.mark.parametrize("name", OF_ANY_KIND)
@torch.no_grad()
def test_any_family_has_native_products(name, tmp_path):
    family = OF_ANY_KIND[name]
    tritune.convert(tritune.prepare(family.build(), DEPLOY).eval()).save_pretrained(tmp_path)
    model, reference = (family.loader.from_pretrained(tmp_path) for _ in range(2))
    engine.attach(model, tmp_path)
    assert model.engine == (NATIVE if name in ("bert", "distilbert", "vit") else PRODUCTS)
    with mock.patch.object(Product, "__call__", autospec=True, side_effect=Product.__call__) as products:
        found = left_to_torch(model, **family.batch(), output_trace=["attention_scores"])
    linears = [module for module in packed_modules(model).values() if isinstance(module, PackedLinear)]
    assert products.call_count >= len(linears) and all(module.native for module in linears)
    assert torch.equal(found.logits, reference(**family.batch()).logits)


# Calls that are left to torch.

CALLS = {
    "hidden states": {"output_hidden_states": True},
    "attentions": {"output_attentions": True},
    "a trace": {"output_trace": ["context"]},
    "labels": {"labels": torch.tensor([0, 1])},
    "positions": {"position_ids": torch.arange(TOKENS).flip(0)[None]},
    "embeddings": {"input_ids": None, "inputs_embeds": torch.randn(2, TOKENS, 16)},
    "a mask of pairs of tokens": {"attention_mask": torch.ones(2, 1, TOKENS, TOKENS, dtype=torch.bool).tril()},
    "a mask of other numbers": {"attention_mask": torch.full((2, TOKENS), 2)},
    "a hidden row": {"attention_mask": torch.tensor([MASKS["full"], [0] * TOKENS])},
    "a hidden first token": {"attention_mask": torch.tensor([MASKS["full"], MASKS["left"]])},
}


@pytest.mark.parametrize("name", CALLS)
@torch.no_grad()
def test_a_call_that_means_something_else_is_torchs(name, pair):
    native, reference = pair
    inputs = {"input_ids": torch.cat([row(0), row(1)])} | CALLS[name]
    found, expected = left_to_torch(native, **inputs), reference(**inputs)
    assert list(found) == list(expected) and torch.equal(found.logits, expected.logits)


FAULTY = {
    "an id": {"input_ids": torch.tensor([[1, 40]])},
    "an id that 32 bits would cut": {"input_ids": torch.tensor([[1, 2**32 + 1]])},
    "a type": {"input_ids": row(0), "token_type_ids": torch.full((1, TOKENS), 2)},
    "too many tokens": {"input_ids": torch.ones(1, 33, dtype=torch.long)},
    "a mask of one row": {"input_ids": torch.cat([row(0), row(1)]), "attention_mask": torch.tensor([MASKS["right"]])},
    "floats": {"input_ids": torch.ones(1, 3)},
    "nothing": {},
    "too much": {"input_ids": row(0), "quux": 1, "labels": "x"},
}


@pytest.mark.parametrize("name", FAULTY)
@torch.no_grad()
def test_torch_says_what_is_wrong(name, pair):
    errors = []
    for model in pair:
        try:
            errors.append(model(**FAULTY[name]))
        except Exception as error:
            errors.append(error)
    assert isinstance(errors[0], Exception)
    assert type(errors[0]) is type(errors[1]) and str(errors[0]) == str(errors[1])


@torch.no_grad()
def test_an_id_that_counts_from_the_end(pair):
    native, reference = pair
    assert torch.equal(native(-row(0)).logits, reference(-row(0)).logits)


def test_where_a_graph_is_wanted_torch_makes_it(pair):
    ids, native = row(0), pair[0]
    for model in pair:
        model.zero_grad()
        model(ids).logits.sum().backward()
    grads = [[parameter.grad for parameter in model.parameters()] for model in pair]
    assert any(grad is not None for grad in grads[0])
    assert all((one is None and other is None) or torch.equal(one, other) for one, other in zip(*grads, strict=True))
    native.requires_grad_(False)
    assert not taken(native, ids).logits.requires_grad


@torch.no_grad()
def test_autocast_training_mode_and_hooks_are_torchs(pair):
    native, reference = pair
    ids = row(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(left_to_torch(native, ids).logits, reference(ids).logits)
    for part in (native, native.bert.encoder.layer[0]):
        part.train()
        left_to_torch(native, ids)
        native.eval()
    heard = []
    hook = native.bert.encoder.layer[1].register_forward_hook(lambda *given: heard.append(1))
    left_to_torch(native, ids)
    hook.remove()
    assert heard == [1] and taken(native, ids)
    left_to_torch(native, ids, output_hidden_states=True)  # transformers leaves hooks of its own behind
    assert taken(native, ids)
    native.set_attn_implementation("eager")
    left_to_torch(native, ids)


def replaced(model: PreTrainedModel) -> None:
    model.bert.encoder.layer[1] = copy.deepcopy(model.bert.encoder.layer[0])


def reloaded(model: PreTrainedModel) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["bert.encoder.layer.0.output.dense.weight_scale"] *= 2
    model.load_state_dict(state)


def given_other_values(model: PreTrainedModel) -> None:
    bias = model.classifier.bias
    bias.data = bias.data + 1


CHANGES = {
    "a scale": lambda model: model.bert.encoder.layer[0].output.dense.weight_scale.mul_(2),
    "an embedding": lambda model: model.bert.embeddings.position_embeddings.weight.add_(0.5),
    "load_state_dict": reloaded,
    "a parameter": lambda model: setattr(model.classifier, "bias", nn.Parameter(model.classifier.bias + 1)),
    "other memory": given_other_values,
    "a module": replaced,
    "half and back": lambda model: model.half().float(),
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "a quantizer": lambda model: setattr(
        model.bert.encoder.layer[0].output.dense, "input_quantizer", Uniform(3, TOKEN)
    ),
    "an operand": lambda model: setattr(model.bert.encoder.layer[0].attention.self.tritune_attention, "value", None),
}


@pytest.mark.parametrize("name", CHANGES)
@torch.no_grad()
def test_a_changed_model_is_torchs(name, pair):
    native, reference = pair
    inputs = clear_batch(reference, ["full", "right"])
    before = native(**inputs).logits
    for model in pair:
        CHANGES[name](model)
    found = left_to_torch(native, **inputs).logits
    assert torch.equal(found, reference(**inputs).logits) and not torch.allclose(found.float(), before)


@torch.no_grad()
def test_what_is_compiled_or_exported_is_torchs(pair):
    native, reference = pair
    inputs = clear_batch(reference, ["full"])
    expected = reference(**inputs).logits
    compiled = torch.compile(native, backend="eager")
    torch.testing.assert_close(left_to_torch(compiled, **inputs).logits, expected, rtol=0, atol=1e-6)
    program = torch.export.export(native, (), inputs, strict=False)
    torch.testing.assert_close(program.module()(**inputs).logits, expected, rtol=0, atol=1e-6)
    with pytest.raises(TrituneError, match=r"torch\.jit\.trace cannot trace a packed model"):
        torch.jit.trace(native, example_kwarg_inputs=inputs, strict=False)
    assert taken(native, **inputs)


# What a model can still do.

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@torch.no_grad()
def test_a_copy_runs_in_torch(copied, pair):
    native, reference = pair
    inputs = clear_batch(reference, ["full", "right"])
    twin = copied(native)
    assert twin.engine == REFERENCE and native.engine == NATIVE
    assert not any(module.native for module in twin.modules() if isinstance(module, PackedLinear))
    assert torch.equal(left_to_torch(twin, **inputs).logits, reference(**inputs).logits)
    assert taken(native, **inputs)


@torch.no_grad()
def test_nothing_of_it_is_saved_or_kept(pair, folders, tmp_path):
    native, reference = pair
    assert [*native.state_dict()] == [*reference.state_dict()]
    native.save_pretrained(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (folders() / path.name).read_bytes(), path.name
    before = [{name: id(value) for name, value in vars(module).items()} for module in native.modules()]
    taken(native, row(0))
    assert before == [{name: id(value) for name, value in vars(module).items()} for module in native.modules()]


def test_a_model_is_freed_with_its_last_reference(folders):
    model = tritune.load(folders())
    with torch.no_grad():
        model(row(0))
    alive = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        del model
        assert alive() is None
    finally:
        gc.enable()


@torch.no_grad()
def test_a_replica_of_data_parallel_calls_itself(pair):
    native, _ = pair
    replica = native._replicate_for_data_parallel()
    assert "forward" not in vars(replica) and "forward" in vars(native)


@torch.no_grad()
def test_threads_get_what_one_gets(folders):
    jobs = []
    for head in (SEQUENCE, BARE):
        model = tritune.load(folders("BERT", head))
        for seed in range(3):
            mask = torch.tensor([MASKS["full"], MASKS["right"], MASKS["holes"]])
            inputs = {"input_ids": torch.cat([row(3 * seed + i) for i in range(3)]), "attention_mask": mask}

            def job(model=model, inputs=inputs) -> list[torch.Tensor]:
                with torch.no_grad():
                    return [model(**inputs)[0], model(**inputs, output_hidden_states=True)[0]]

            jobs.append(job)
    assert in_threads(jobs, calls=10) == []


@torch.no_grad()
def test_any_number_of_threads_and_any_batch_give_the_same_bits(pair):
    native, reference = pair
    inputs = clear_batch(reference, ["full", "right", "holes"], count=6)
    expected = torch.cat(
        [native(**{name: values[i : i + 1] for name, values in inputs.items()}).logits for i in range(6)]
    )
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        assert torch.equal(taken(native, **inputs).logits, expected)
    torch.set_num_threads(before)


# The choice.


@torch.no_grad()
def test_the_environment_chooses(folders, monkeypatch):
    monkeypatch.setenv("TRITUNE_ENGINE", "reference")
    assert tritune.load(folders()).engine == REFERENCE
    assert tritune.load(folders(), engine="native").engine == NATIVE  # what is said here is nearer
    monkeypatch.setenv("TRITUNE_ENGINE", "native")
    assert tritune.load(folders()).engine == NATIVE
    assert tritune.load(folders(), engine="reference").engine == REFERENCE
    per_tensor = folders("BERT", SEQUENCE, Quantization())
    with pytest.raises(
        TrituneError, match=r"^\S+: the native engine does not run this model: [^\n]*activation_gran[^\n]*$"
    ):
        tritune.load(per_tensor)
    monkeypatch.setenv("TRITUNE_ENGINE", "")
    assert tritune.load(per_tensor).engine == REFERENCE
    monkeypatch.setenv("TRITUNE_ENGINE", "quick")
    with pytest.raises(TrituneError, match=r"^TRITUNE_ENGINE must be one of native, reference, [^\n]+'quick'$"):
        tritune.load(folders())
    with pytest.raises(TrituneError, match=r"^engine must be one of native, reference, "):
        tritune.load(folders(), engine="fast")


@pytest.mark.parametrize("isa", binding.isas())
@torch.no_grad()
def test_an_instruction_set_is_chosen(isa, folders, monkeypatch):
    monkeypatch.setenv("TRITUNE_ISA", isa)
    native, reference = tritune.load(folders()), tritune.load(folders(), engine="reference")
    inputs = clear_batch(reference, ["full", "right"])
    assert_same(taken(native, **inputs), reference(**inputs), inputs["attention_mask"])
    assert torch.equal(native(**inputs, output_hidden_states=True).logits, reference(**inputs).logits)


@pytest.mark.parametrize("choice", [None, "native", "reference"])
def test_commands_choose_it_too(choice, tmp_path, monkeypatch):
    rows = [{"text": text} for text in sentences(4)]
    if choice is not None:
        monkeypatch.setenv("TRITUNE_ENGINE", choice)
    folder = save_reader("BERT", SEQUENCE, tmp_path / "model")
    with mock.patch.object(Model, "run", autospec=True, side_effect=Model.run) as run:
        assert len(predict_rows(folder, rows)) == 4
    assert run.called == (choice != "reference")


def test_an_instruction_set_that_is_not_there(folders, monkeypatch):
    monkeypatch.setenv("TRITUNE_ISA", "abacus")
    with pytest.raises(TrituneError, match=r"^[^\n]*TRITUNE_ISA=abacus[^\n]*$"):
        tritune.load(folders())
    assert tritune.load(folders(), engine="reference").engine == REFERENCE


def test_other_places_and_precisions_run_in_torch(folders):
    assert tritune.load(folders(), dtype=torch.float16).engine == REFERENCE
    with pytest.raises(TrituneError, match="it is in bfloat16, not in float32"):
        tritune.load(folders(), engine="native", dtype=torch.bfloat16)


def test_without_the_library_torch_runs_it(folders, monkeypatch):
    monkeypatch.setattr("tritune.checkpoints.engine.why_not", lambda: "the engine was not compiled: no g++")
    assert tritune.load(folders()).engine == REFERENCE
    with pytest.raises(TrituneError, match="does not run this model: the engine was not compiled: no g"):
        tritune.load(folders(), engine="native")


def test_plain_cpp_is_for_those_who_ask_for_it(folders, monkeypatch):
    monkeypatch.delenv("TRITUNE_ISA", raising=False)
    monkeypatch.setattr("tritune.checkpoints.engine.isas", lambda: ["scalar"])
    assert tritune.load(folders()).engine == REFERENCE
    assert tritune.load(folders(), engine="native").engine == NATIVE
    monkeypatch.setenv("TRITUNE_ISA", "scalar")
    assert tritune.load(folders()).engine == NATIVE


def test_a_student_has_no_engine(tmp_path, folders):
    tritune.prepare(SERVED["BERT"].build(), DEPLOY).save_pretrained(tmp_path)
    assert not hasattr(tritune.load(tmp_path), "engine")
    with pytest.raises(TrituneError, match="not packed, so engine='native' has no meaning"):
        tritune.load(tmp_path, engine="native")


def test_ternary_weights_with_one_scale(folders):
    native, reference = (
        tritune.load(folders("BERT", SEQUENCE, TERNARY), engine=name) for name in ("native", "reference")
    )
    inputs = clear_batch(reference, ["full", "right"])
    with torch.no_grad():
        assert_same(taken(native, **inputs), reference(**inputs), inputs["attention_mask"])
    assert np.isfinite(native.classifier.weight.detach().numpy()).all()
