"""The laws of traces, interventions and part switches, over every family; and the families that are refused."""

import copy
import re
from dataclasses import fields

import pytest
import torch
import transformers

import tritune
from families import FAMILIES, HEADS, LABELS, WIDTH
from tritune import Intervention, LayerTrace, Quantization, Site, TrituneError, UnsupportedModelError
from tritune.distil.losses import Pair, distillation_losses
from tritune.modeling.instrument import instrument_of
from tritune.modeling.layers import QuantEmbedding, QuantLinear
from tritune.modeling.sites import ATTENTION_SITES
from tritune.modeling.trace import TRACE_FIELDS
from zoo import REFUSED

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
every_site = pytest.mark.parametrize("site", Site)
every_attention_site = pytest.mark.parametrize("site", ATTENTION_SITES)
TERNARYBERT = {"logits": 1.0, "hidden_states": 1.0, "attention_scores": 1.0}
TENSORS = [field.name for field in fields(LayerTrace) if field.name != "masked"]


@pytest.fixture(scope="module")
def traced():
    """By family: a prepared student, a batch, the teacher's output and the student's own, all recorded."""
    found = {}
    for name, family in FAMILIES.items():
        student, batch = tritune.prepare(family.build()), family.batch()
        with torch.no_grad():
            teacher_output = tritune.instrument(family.build(seed=1))(**batch, output_trace=True)
            found[name] = student, batch, teacher_output, student(**batch, output_trace=True)
    return found


@every_family
def test_the_anatomy_is_the_one_read_in_the_source(family, traced):
    sites = instrument_of(traced[family.name][0]).anatomy.sites
    assert tuple((site.query, site.key, site.value, site.projection) for site in sites) == family.sites
    found = tuple((site.norm, "output" if site.post_norm else "input") for site in sites)
    assert found == family.block_output


@every_family
def test_traces_have_the_documented_shapes(family, traced):
    _, batch, _, output = traced[family.name]
    layers, hidden_states = output.trace.layers, output.trace.hidden_states
    size = len(next(iter(batch.values())))
    tokens = batch["input_ids"].shape[1] if "input_ids" in batch else 5  # 4 patches and the class token
    square, sequence = (size, HEADS, tokens, tokens), (size, tokens, WIDTH)
    assert len(layers) == len(family.sites) and len(hidden_states) == len(layers) + 1
    for layer in layers:
        assert layer.attention_scores.shape == layer.attention_probs.shape == square
        assert layer.context.shape == (size, HEADS, tokens, WIDTH // HEADS)
        assert layer.attention_projection.shape == layer.attention_block_output.shape == sequence
        if "attention_mask" in batch:
            hidden = batch["attention_mask"][:, None, None, :] == 0
            assert torch.equal(layer.masked.expand(square), hidden.expand(square))
            assert not layer.attention_probs[hidden.expand(square)].any()
        else:
            assert layer.masked is None
        total = layer.attention_probs.sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total))
        torch.testing.assert_close(layer.attention_scores.softmax(-1), layer.attention_probs)
    assert all(states.shape[0] == size and states.shape[1] == tokens for states in hidden_states)


@every_family
def test_recording_changes_no_bit(family, traced):
    student, batch, _, recorded = traced[family.name]
    plain = student(**batch)
    assert torch.equal(plain.logits, recorded.logits) and "trace" not in plain
    for name in TRACE_FIELDS:
        output = student(**batch, output_trace=[name])
        assert torch.equal(output.logits, plain.logits)
        for layer, full in zip(output.trace.layers, recorded.trace.layers, strict=True):
            for other in TENSORS:
                if other == name:
                    assert torch.equal(getattr(layer, name), getattr(full, name))
                else:
                    assert getattr(layer, other) is None
        assert (output.trace.hidden_states is None) == (name != "hidden_states")


@every_family
def test_unknown_trace_fields_are_refused(family, traced):
    student, batch, *_ = traced[family.name]
    with pytest.raises(TrituneError, match="attention_dance"):
        student(**batch, output_trace=["attention_dance"])


@every_family
@torch.no_grad()
def test_traces_are_what_plain_hooks_see(family):
    """A float model's own modules, without tritune: the projection, and the block output where the source puts it."""
    model, batch = family.build(), family.batch()
    seen = {"projection": [], "block_output": []}
    modules = dict(model.named_modules())
    for name in dict.fromkeys(site[3] for site in family.sites):
        modules[name].register_forward_hook(lambda m, args, out: seen["projection"].append(out.clone()))
    for name, side in dict.fromkeys(family.block_output):
        modules[name].register_forward_hook(
            lambda m, args, out, side=side: seen["block_output"].append((out if side == "output" else args[0]).clone())
        )
    expected = model(**batch, output_hidden_states=True)
    trace = tritune.instrument(family.build())(**batch, output_trace=True).trace
    for layer, projection, block in zip(trace.layers, seen["projection"], seen["block_output"], strict=True):
        assert torch.equal(layer.attention_projection, projection)
        assert torch.equal(layer.attention_block_output, block)
    for own, theirs in zip(trace.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(own, theirs)


@pytest.mark.parametrize("name", ["bert", "vit"])
@torch.no_grad()
def test_a_block_is_recomputed_by_hand(name):
    """Every traced tensor of every layer of a float model, from the weights alone, in float64."""
    family = FAMILIES[name]
    model, batch = tritune.instrument(family.build().double()), family.batch()
    batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
    trace = model(**batch, output_trace=True).trace
    for i, layer in enumerate(trace.layers):
        query, key, value, projection = (model.get_submodule(part) for part in family.sites[i])
        states = trace.hidden_states[i]
        block = model.get_submodule(family.block_output[i][0].split("layernorm_after")[0].rstrip("."))
        inner = block.layernorm_before(states) if name == "vit" else states
        for b, length in enumerate(batch.get("attention_mask", torch.ones(states.shape[:2])).sum(-1).long()):
            for h in range(HEADS):
                part = slice(h * WIDTH // HEADS, (h + 1) * WIDTH // HEADS)
                q, k, v = ((inner[b] @ m.weight.T + m.bias)[:, part] for m in (query, key, value))
                scores = (q @ k.T / (WIDTH // HEADS) ** 0.5)[:, :length]
                torch.testing.assert_close(layer.attention_scores[b, h, :, :length], scores)
                probs = scores.exp() / scores.exp().sum(-1, keepdim=True)
                torch.testing.assert_close(layer.attention_probs[b, h, :, :length], probs)
                torch.testing.assert_close(layer.context[b, h], probs @ v[:length])
        merged = layer.context.transpose(1, 2).flatten(2)
        torch.testing.assert_close(layer.attention_projection, merged @ projection.weight.T + projection.bias)
        residual = states + layer.attention_projection
        if name == "bert":
            centred = residual - residual.mean(-1, keepdim=True)
            spread = (centred.square().mean(-1, keepdim=True) + block.eps).sqrt()
            residual = centred / spread * block.weight + block.bias
        torch.testing.assert_close(layer.attention_block_output, residual)


def disturbed(tensor: torch.Tensor, site: Site) -> torch.Tensor:
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(5))
    return noise.softmax(-1) if site is Site.MAP else tensor + noise


# What a site replaces sits behind these tensors of its own layer, which must therefore not move.
BEFORE_SITE = {
    Site.MAP: ["attention_scores", "attention_probs"],
    Site.CONTEXT: ["attention_scores", "attention_probs", "context"],
    Site.PROJECTION: ["attention_scores", "attention_probs", "context", "attention_projection"],
}
# The tensors that a layer computes from the teacher's alone, which earlier layers therefore cannot move.
FED_BY_TEACHER = {Site.MAP: [], Site.CONTEXT: ["attention_projection"], Site.PROJECTION: []}


@every_family
@every_attention_site
@torch.no_grad()
def test_each_layer_hears_its_own_teacher_tensor(family, site, traced):
    student, batch, teacher_output, _ = traced[family.name]
    base = student(**batch, output_trace=True, intervention=Intervention(site, teacher_output.trace))
    for i in range(len(family.sites)):
        other = copy.deepcopy(teacher_output.trace)
        setattr(other.layers[i], site.field, disturbed(getattr(other.layers[i], site.field), site))
        output = student(**batch, output_trace=True, intervention=Intervention(site, other))
        assert not torch.equal(output.logits, base.logits)
        for j, (own, before) in enumerate(zip(output.trace.layers, base.trace.layers, strict=True)):
            same = TENSORS if j < i else BEFORE_SITE[site] if j == i else FED_BY_TEACHER[site]
            for name in TENSORS:
                assert torch.equal(getattr(own, name), getattr(before, name)) == (name in same), (i, j, name)
        for j, (own, before) in enumerate(zip(output.trace.hidden_states, base.trace.hidden_states, strict=True)):
            assert torch.equal(own, before) == (j <= i)


@every_family
@every_site
@torch.no_grad()
def test_a_students_own_tensors_change_nothing(family, site, traced):
    student, batch, _, own = traced[family.name]
    output = student(**batch, output_trace=True, intervention=Intervention(site, own.trace))
    assert torch.equal(output.logits, own.logits)


@every_attention_site
def test_a_trace_that_does_not_fit_is_refused(site, traced):
    student, batch, teacher_output, _ = traced["bert"]
    short = copy.deepcopy(teacher_output.trace)
    short.layers.pop()
    with pytest.raises(TrituneError, match="2 layers, the student 3"):
        student(**batch, intervention=Intervention(site, short))
    lacking = copy.deepcopy(teacher_output.trace)
    setattr(lacking.layers[1], site.field, None)
    with pytest.raises(TrituneError, match=site.field):
        student(**batch, intervention=Intervention(site, lacking))


@every_site
def test_a_trace_of_another_batch_is_refused(site, traced):
    student, batch, teacher_output, _ = traced["bert"]
    for part in (slice(0, 1), slice(0, 2)):
        with pytest.raises(TrituneError, match=r"batch|shape"):
            rows = {key: value[part] for key, value in batch.items()}
            student(**rows, intervention=Intervention(site, teacher_output.trace))


@every_family
@pytest.mark.parametrize("site", [None, *ATTENTION_SITES])
def test_gradients_are_missing_exactly_where_the_teacher_stands(family, site, traced):
    student, batch, teacher_output, _ = traced[family.name]
    student = copy.deepcopy(student).train()
    output = student(**batch, output_trace=True, intervention=site and Intervention(site, teacher_output.trace))
    pair = Pair(output, teacher_output, batch.get("attention_mask"))
    sum(distillation_losses(pair, TERNARYBERT).values()).backward()
    cut = {None: (), Site.MAP: (), Site.CONTEXT: (2,), Site.PROJECTION: (2, 3)}[site]
    # A fused Linear is one parameter: while Q and K hear of the scores, the rows of V have a gradient of zeros.
    silent = [names[i] for names in family.sites for i in cut if i == 3 or names[2] != names[0]]
    if cut:  # a norm that feeds Q, K and V alone is cut off together with them
        silent += family.norms_before
    parameters = dict(student.named_parameters())
    expected = {f"{name}.{kind}" for name in silent for kind in ("weight", "bias")} & set(parameters)
    assert {name for name, parameter in parameters.items() if parameter.grad is None} == expected


@every_family
@every_attention_site
def test_no_gradient_reaches_back_through_the_cut(family, site, traced):
    """Of the logits alone: below the first layer only the residual path is left, and Q and K hear nothing."""
    student, batch, teacher_output, _ = traced[family.name]
    student = copy.deepcopy(student).train()
    student(**batch, intervention=Intervention(site, teacher_output.trace)).logits.square().sum().backward()
    parameters = dict(student.named_parameters())
    for query, key, value, projection in family.sites:
        assert (parameters[f"{projection}.weight"].grad is not None) == (site is not Site.PROJECTION)
        if query == value:
            gradient = parameters[f"{query}.weight"].grad
            assert (gradient is not None) == (site is Site.MAP)
            if site is Site.MAP:
                assert not gradient[: 2 * WIDTH].any() and gradient[2 * WIDTH :].any()
            continue
        assert parameters[f"{query}.weight"].grad is None and parameters[f"{key}.weight"].grad is None
        assert (parameters[f"{value}.weight"].grad is not None) == (site is Site.MAP)


BERT_PARTS = {
    "query_key_value": r"bert\.encoder\.layer\.\d\.attention\.self\.(query|key|value)",
    "attention_projection": r"bert\.encoder\.layer\.\d\.attention\.output\.dense",
    "ffn_in": r"bert\.encoder\.layer\.\d\.intermediate\.dense",
    "ffn_out": r"bert\.encoder\.layer\.\d\.output\.dense",
    "embeddings": r"bert\.embeddings\.word_embeddings",
    "pooler": r"bert\.pooler\.dense",
    "classifier": r"classifier",
    "attention_products": r"(?!)",
}
NOTHING = dict.fromkeys(BERT_PARTS, False)


def quantized(model: torch.nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, QuantLinear | QuantEmbedding)}


def matching(model: torch.nn.Module, pattern: str) -> set[str]:
    return {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}


@pytest.mark.parametrize("part", BERT_PARTS)
def test_a_part_switch_swaps_exactly_its_modules(part):
    model = FAMILIES["bert"].build()
    expected = matching(model, BERT_PARTS[part])
    assert expected or part == "attention_products"
    before = model(**FAMILIES["bert"].batch()).logits
    tritune.prepare(model, Quantization(**(NOTHING | {part: True})))
    assert quantized(model) == expected
    for state in instrument_of(model).states:
        for operand in ("query", "key", "attention_probs", "value"):
            assert (getattr(state, operand) is not None) == (part == "attention_products")
    assert not torch.equal(model(**FAMILIES["bert"].batch()).logits, before)


@every_family
def test_by_default_everything_but_classifier_and_other_embeddings_is_quantized(family):
    model = tritune.prepare(family.build())
    anatomy = instrument_of(model).anatomy
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    words = model.get_input_embeddings()
    word_names = {name for name, m in model.named_modules() if m is words and isinstance(m, torch.nn.Embedding)}
    assert quantized(model) == linears - set(anatomy.classifier) | word_names
    (classifier,) = anatomy.classifier
    assert model.get_submodule(classifier).out_features == LABELS


@pytest.mark.parametrize("layers", [(), (1,), (2, 0), (0, 1, 2), [1]], ids=str)
def test_only_the_named_layers_are_quantized(layers):
    family = FAMILIES["bert"]
    model, batch = family.build(), family.batch()
    before = model(**batch, output_hidden_states=True).hidden_states
    tritune.prepare(model, Quantization(layers=layers, embeddings=False))
    numbers = "|".join(map(str, layers)) or "(?!)"
    linears = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    encoder = matching(model, rf"bert\.encoder\.layer\.({numbers})\..*") & linears
    assert len(encoder) == 6 * len(layers) and quantized(model) == encoder | {"bert.pooler.dense"}
    for i, state in enumerate(instrument_of(model).states):
        assert all(
            (getattr(state, op) is not None) == (i in layers) for op in ("query", "key", "attention_probs", "value")
        )
    after = model(**batch, output_trace=["hidden_states"]).trace.hidden_states
    first = min(layers, default=len(before))
    assert [torch.equal(a, b) for a, b in zip(after, before, strict=True)] == [i <= first for i in range(len(before))]


@pytest.mark.parametrize(
    ("name", "layers", "message"),
    [("bert", (3,), "3"), ("bert", (0, -1), "-1"), ("albert", (0,), "share"), ("albert", (), "share")],
    ids=str,
)
def test_layer_ranges_that_do_not_fit_are_refused_and_change_nothing(name, layers, message):
    model, batch = FAMILIES[name].build(), FAMILIES[name].batch()
    before = model(**batch).logits
    with pytest.raises(TrituneError, match=f"layers.*{message}"):
        tritune.prepare(model, Quantization(layers=layers))
    assert not quantized(model) and torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize("name", ["Canine", "IBert", "Wav2Vec2"])
def test_a_model_without_a_table_of_tokens_is_refused_in_words(name):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sound = {"conv_dim": (8,), "conv_kernel": (3,), "conv_stride": (2,), "num_conv_pos_embeddings": 2}
    sound |= {"num_conv_pos_embedding_groups": 2, "num_feat_extract_layers": 1}
    config = getattr(transformers, f"{name}Config")(**sizes, **(sound if name == "Wav2Vec2" else {}))
    with pytest.raises(UnsupportedModelError, match=f"{name}Model is not supported: "):
        tritune.instrument(transformers.AutoModel.from_config(config))


@pytest.mark.parametrize("family", REFUSED.values(), ids=REFUSED)
@torch.no_grad()
def test_a_family_that_cannot_be_served_is_refused_by_name_and_left_as_it_was(family):
    model = family.build()
    ids = torch.tensor([[5, 6, 7, 8, 9, 2]])
    implementation, training = model.config._attn_implementation, model.training
    expected = model(input_ids=ids).logits
    modules = [type(module) for module in model.modules()]
    for verb in (tritune.instrument, tritune.prepare):
        with pytest.raises(UnsupportedModelError, match=f"{family.model} is not supported: .*{family.reason}"):
            verb(model)
        assert model.config._attn_implementation == implementation and model.training is training
        assert [type(module) for module in model.modules()] == modules
        assert torch.equal(model(input_ids=ids).logits, expected)
