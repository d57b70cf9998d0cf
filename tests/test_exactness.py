"""What must hold to the last bit: off means off, and a projection handed over is a projection handed over."""

import copy

import pytest
import torch

import tritune
from combinations import crossed
from families import FAMILIES
from tritune import Intervention, Quantization, Site, TrituneError
from tritune.distil.losses import Pair, distillation_losses, trace_fields
from tritune.distil.schedule import SCHEDULES
from tritune.modeling.layers import QuantEmbedding, QuantLinear
from tritune.recipes import load_recipe, shipped_recipes

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
OFF = Quantization(weight_bits=None, activation_bits=None)
ATTENTION_ONLY = Quantization(ffn_in=False, ffn_out=False, embeddings=False, pooler=False)


@every_family
@torch.no_grad()
def test_a_student_with_quantized_attention_and_the_teachers_projections_is_the_teacher(family):
    model, batch = family.build(), family.batch()
    expected = model(**batch).logits
    teacher, student = tritune.instrument(copy.deepcopy(model)), tritune.prepare(model, ATTENTION_ONLY).eval()
    trace = teacher(**batch, output_trace=["attention_projection"]).trace
    assert torch.equal(student(**batch, intervention=Intervention(Site.PROJECTION, trace)).logits, expected)
    assert not torch.equal(student(**batch).logits, expected)
    for site in (Site.MAP, Site.CONTEXT):
        trace = teacher(**batch, output_trace=True).trace
        assert not torch.equal(student(**batch, intervention=Intervention(site, trace)).logits, expected)


@every_family
def test_off_is_the_eager_model(family):
    model, batch = family.build().train(), family.batch()
    expected = model(**batch, output_hidden_states=True)
    expected.logits.square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)

    student = tritune.prepare(model, OFF)
    output = student(**batch, output_hidden_states=True)
    output.logits.square().sum().backward()
    assert torch.equal(output.logits, expected.logits)
    for own, theirs in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(own, theirs)
    for parameter, theirs in zip(student.parameters(), gradients, strict=True):
        assert (parameter.grad is None and theirs is None) or torch.equal(parameter.grad, theirs)


@every_family
def test_names_and_parameters_are_the_models_own(family):
    model = family.build()
    parameters, names, training = dict(model.named_parameters()), list(model.state_dict()), model.training
    trainable = {name: parameter.requires_grad for name, parameter in parameters.items()}
    student = tritune.prepare(model)
    assert student is model and student.training is training
    assert list(student.state_dict()) == names
    assert {name: p.requires_grad for name, p in student.named_parameters()} == trainable
    for name, parameter in student.named_parameters():
        assert parameter is parameters[name] and parameter.grad is None
    assert any(isinstance(module, QuantLinear | QuantEmbedding) for module in student.modules())


@every_family
def test_latent_weights_go_back_into_a_float_model(family):
    student, other, batch = tritune.prepare(family.build()), family.build(seed=1), family.batch()
    other.load_state_dict(student.state_dict())
    assert torch.equal(other(**batch).logits, family.build()(**batch).logits)


def test_frozen_parameters_and_modes_survive():
    model = FAMILIES["bert"].build()
    model.bert.embeddings.requires_grad_(False)
    model.train()
    model.bert.encoder.layer[1].eval()
    tritune.prepare(model)
    assert not any(parameter.requires_grad for parameter in model.bert.embeddings.parameters())
    assert all(parameter.requires_grad for parameter in model.bert.encoder.parameters())
    assert model.training and not any(module.training for module in model.bert.encoder.layer[1].modules())


def test_prepare_twice_is_refused_and_changes_nothing():
    family = FAMILIES["bert"]
    student, batch = tritune.prepare(family.build()), family.batch()
    expected = student(**batch).logits
    with pytest.raises(TrituneError, match=r"BertForSequenceClassification.*already prepared"):
        tritune.prepare(student, OFF)
    assert torch.equal(student(**batch).logits, expected)
    assert student.config.quantization_config.quantization == Quantization()


@every_family
def test_instrument_is_idempotent(family):
    model, batch = family.build(), family.batch()
    expected = model(**batch).logits
    hooks = []
    for _ in range(2):
        assert tritune.instrument(model) is model
        hooks.append([len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()])
    assert hooks[0] == hooks[1] and sum(hooks[0]) > 0
    output = model(**batch, output_trace=True)
    assert torch.equal(output.logits, expected) and len(output.trace.layers) == len(family.sites)


def teacher_trace(family, batch):
    with torch.no_grad():
        return tritune.instrument(family.build(seed=1))(**batch, output_trace=True).trace


@every_family
def test_a_deep_copy_is_a_model_of_its_own(family):
    student, batch = tritune.prepare(family.build()), family.batch()
    twin = copy.deepcopy(student)
    trace = teacher_trace(family, batch)
    before = student(**batch, output_trace=True)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    for site in Site:
        assert not torch.equal(twin(**batch, intervention=Intervention(site, trace)).logits, before.logits)
        after = student(**batch, output_trace=True)
        assert torch.equal(after.logits, before.logits)
        assert len(after.trace.layers) == len(before.trace.layers)
        for own, earlier in zip(after.trace.layers, before.trace.layers, strict=True):
            assert torch.equal(own.attention_probs, earlier.attention_probs)
    assert len(twin(**batch, output_trace=["context"]).trace.layers) == len(before.trace.layers)


@every_family
def test_an_intervention_ends_with_its_step(family):
    student, batch = tritune.prepare(family.build()), family.batch()
    alone = student(**batch).logits
    trace = teacher_trace(family, batch)
    for site in Site:
        assert not torch.equal(student(**batch, intervention=Intervention(site, trace)).logits, alone)
        output = student(**batch)
        assert torch.equal(output.logits, alone) and "trace" not in output


def test_an_intervention_ends_with_a_step_that_failed():
    family = FAMILIES["bert"]
    student, batch = tritune.prepare(family.build()), family.batch()
    alone = student(**batch).logits
    trace = teacher_trace(family, batch)
    with pytest.raises(IndexError):
        student(input_ids=torch.tensor([[10**6]]), intervention=Intervention(Site.MAP, trace), output_trace=True)
    output = student(**batch)
    assert torch.equal(output.logits, alone) and "trace" not in output


STUDENTS = [name for name in shipped_recipes() if name != "finetune"]


@pytest.mark.parametrize(
    ("name", "bf16"), crossed({name: name for name in STUDENTS}, {"float32": False, "bfloat16": True})
)
def test_gradient_checkpointing_changes_no_gradient(name, bf16):
    """Every recipe, at every site its schedule comes to and without any."""
    recipe, family = load_recipe(name), FAMILIES["bert"]
    coefficients = recipe.coefficients()
    fields = trace_fields(coefficients)
    student, batch = tritune.prepare(family.build(), recipe.section(Quantization)).train(), family.batch()
    teacher = tritune.instrument(family.build(seed=1))
    with torch.no_grad():
        theirs = teacher(**batch, output_trace=True)
    sites = {SCHEDULES[recipe.schedule](step, 6, 0) for step in range(6)} if recipe.schedule else set()
    for site in (None, *sites):
        results = []
        for checkpointing in (False, True):
            model = copy.deepcopy(student)
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                output = model(
                    **batch, output_trace=fields, intervention=Intervention(site, theirs.trace) if site else None
                )
            # Any vectors serve as the embeddings that the recipes of sentence encoders compare.
            pair = Pair(output, theirs, batch["attention_mask"], embeddings=(output.logits, theirs.logits))
            losses = distillation_losses(pair, coefficients)
            sum(coefficients[name] * loss for name, loss in losses.items()).backward()
            alone = model.eval()(**batch).logits
            results.append([*losses.values(), alone, *(parameter.grad for parameter in model.parameters())])
        for own, other in zip(*results, strict=True):
            assert (own is None and other is None) or torch.equal(own, other)
