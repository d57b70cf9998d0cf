"""`Site.BLOCK`: the teacher's state at a block's input, against a loop over blocks written by hand."""

import copy
import json

import pytest
import torch
from torch.nn import functional as F

import tritune
from families import FAMILIES, text_batch
from test_layer_map import bert
from test_trainer import BERT, trainer
from tritune import Intervention, ModelTrace, Site, TrituneError, UnsupportedModelError
from tritune.inference.evaluate import assisted_logits
from tritune.modeling.blocks import Blocks
from tritune.modeling.instrument import instrument_of
from tritune.modeling.sites import ATTENTION_SITES
from tritune.training.pairing import pairing
from workspace import make_workspace, train_arguments
from zoo import SERVED
from zoo import text_batch as zoo_text_batch

FOLLOWING = [name for name in SERVED if name != "Swin"]
every_family = pytest.mark.parametrize("name", FOLLOWING)
every_weight = pytest.mark.parametrize("weight", [0, 0.5, 1.0])


def pair(name: str):
    """A student in training mode, another model's trace, and their batch."""
    family = SERVED[name]
    student, batch = tritune.prepare(family.build(), family.quantization).train(), family.batch()
    with torch.no_grad():
        trace = tritune.instrument(family.build(seed=1))(**batch, output_trace=["hidden_states"]).trace
    return student, batch, trace


def by_hand(student, batch, teachers, weight):
    """The states before every block, and the answer, block by block."""
    blocks = Blocks(student)
    state, calls = blocks.stem(batch)
    states = [state]
    for layer, call in enumerate(calls):
        state = blocks.block(layer, (weight * teachers[layer] + (1 - weight) * state).detach(), call)
        states.append(state)
    return states[:-1], blocks.answer(batch, state)[0]


def gradients(student, states, answer, teachers) -> dict[str, torch.Tensor | None]:
    losses = [F.mse_loss(own, theirs) for own, theirs in zip(states, teachers, strict=False)]
    student.zero_grad()
    (sum(losses) + answer.square().sum()).backward()
    return {name: parameter.grad for name, parameter in student.named_parameters()}


@every_family
@torch.no_grad()
def test_a_hidden_state_is_what_its_block_takes(name):
    """In every family that is served, so that the teacher's trace holds what the student's blocks are to get."""
    model, batch = tritune.instrument(SERVED[name].build()), SERVED[name].batch()
    taken = []
    for block in dict.fromkeys(instrument_of(model).anatomy.blocks):
        model.get_submodule(block).register_forward_pre_hook(lambda module, args: taken.append(args[0]))
    states = model(**batch, output_trace=["hidden_states"]).trace.hidden_states
    assert len(states) == len(taken) + 1 and all(map(torch.equal, taken, states))


@every_family
@every_weight
def test_states_answer_and_gradients_are_those_of_the_blocks_one_by_one(name, weight):
    student, batch, trace = pair(name)
    output = student(**batch, output_trace=["hidden_states"], intervention=Intervention(Site.BLOCK, trace, weight))
    own = output.trace.hidden_states[:-1]
    states, answer = by_hand(student, batch, trace.hidden_states, weight)
    assert len(own) == len(states) and all(map(torch.equal, own, states)) and torch.equal(output[0], answer)
    found = gradients(student, own, output[0], trace.hidden_states)
    found = {key: None if gradient is None else gradient.clone() for key, gradient in found.items()}
    for key, expected in gradients(student, states, answer, trace.hidden_states).items():
        assert (expected is None) == (found[key] is None), key
        if expected is not None:
            torch.testing.assert_close(found[key], expected, rtol=1e-6, atol=1e-7, msg=key)


@every_family
def test_a_block_is_trained_by_its_own_error_alone(name):
    student, batch, trace = pair(name)
    blocks = instrument_of(student).anatomy.blocks
    parameters = dict(student.named_parameters())

    def moved_by(place: int) -> set[str]:
        student.zero_grad()
        intervention = Intervention(Site.BLOCK, trace, 0.5)
        states = student(**batch, output_trace=["hidden_states"], intervention=intervention).trace.hidden_states
        F.mse_loss(states[place], trace.hidden_states[place]).backward()
        return {key for key, parameter in parameters.items() if parameter.grad is not None}

    stem = moved_by(0)
    assert stem and not any(key.startswith(f"{block}.") for key in stem for block in blocks)
    for layer in range(len(blocks) - 1):
        moved = moved_by(layer + 1)
        assert moved and all(key.startswith(f"{blocks[layer]}.") for key in moved)


@pytest.mark.parametrize("name", FAMILIES)
def test_without_the_teacher_a_student_gives_its_own_answer_and_no_gradient_crosses_a_border(name):
    family = FAMILIES[name]
    student, batch = tritune.prepare(family.build()), family.batch()
    trace = tritune.instrument(family.build(seed=1))(**batch, output_trace=True).trace
    alone = student(**batch, output_trace=True)
    output = student(**batch, output_trace=True, intervention=Intervention(Site.BLOCK, trace, 0))
    assert torch.equal(output.logits, alone.logits)
    for own, expected in zip(output.trace.hidden_states, alone.trace.hidden_states, strict=True):
        assert torch.equal(own, expected)
    output.logits.sum().backward()
    assert student.get_input_embeddings() is None or all(
        parameter.grad is None for parameter in student.get_input_embeddings().parameters()
    )


@pytest.mark.parametrize("name", ["bert", "albert", "zorp_pre_norm"])
def test_shared_weights_learn_from_every_layer_that_they_compute(name):
    """Each call takes the state of its own layer: another state of one layer moves what comes behind it and no more."""
    family = FAMILIES[name]
    student, batch = tritune.prepare(family.build()), family.batch()
    trace = tritune.instrument(family.build(seed=1))(**batch, output_trace=True).trace
    fields = {"output_trace": ["hidden_states"]}
    base = student(**batch, **fields, intervention=Intervention(Site.BLOCK, trace)).trace.hidden_states
    for layer in range(len(base) - 1):
        states = list(trace.hidden_states)
        states[layer] = states[layer] + torch.randn(states[layer].shape, generator=torch.Generator().manual_seed(5))
        other = ModelTrace(trace.layers, states)
        output = student(**batch, **fields, intervention=Intervention(Site.BLOCK, other)).trace.hidden_states
        assert [not torch.equal(*both) for both in zip(output, base, strict=True)] == [
            place == layer + 1 for place in range(len(base))
        ]


@pytest.mark.parametrize("name", ["BERT", "DistilBERT", "ViT", "ModernBERT", "Llama", "BEiT"])
def test_gradient_checkpointing_changes_nothing(name):
    found = []
    for checkpointing in (False, True):
        student, batch, trace = pair(name)
        if checkpointing:
            student.activation_checkpointing_enable()
        output = student(**batch, output_trace=["hidden_states"], intervention=Intervention(Site.BLOCK, trace, 0.25))
        found.append((output[0], gradients(student, output.trace.hidden_states, output[0], trace.hidden_states)))
    assert torch.equal(found[0][0], found[1][0])
    for key, gradient in found[0][1].items():
        other = found[1][1][key]
        assert (gradient is None and other is None) or torch.equal(gradient, other), key


@pytest.mark.parametrize("layer_map", [(1, 3), (3, 1), (0, 0)], ids=str)
@torch.no_grad()
def test_a_shallower_student_takes_what_the_teachers_layer_before_gave(layer_map):
    teacher, batch = tritune.instrument(bert(4)), text_batch()
    student, taken = tritune.prepare(bert(2, seed=2)), []
    whole = teacher(**batch, output_trace=["hidden_states"]).trace
    for layer in student.bert.encoder.layer:
        layer.attention.register_forward_pre_hook(lambda module, args: taken.append(args[0]))
    student(**batch, intervention=Intervention(Site.BLOCK, whole.mapped(layer_map)))
    assert torch.equal(taken[0], whole.hidden_states[0])
    assert torch.equal(taken[1], whole.hidden_states[layer_map[0] + 1])


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan"), "0.5", None])
def test_a_weight_that_is_no_share_is_refused(weight):
    with pytest.raises(TrituneError, match="weight of an intervention must be between 0 and 1; got"):
        Intervention(Site.BLOCK, ModelTrace(), weight)


@pytest.mark.parametrize("site", ATTENTION_SITES)
def test_no_other_site_mixes(site):
    with pytest.raises(TrituneError, match=rf"must be 1 at {site}: only Site.BLOCK mixes; got 0\.5"):
        Intervention(site, ModelTrace(), 0.5)


def test_a_trace_without_a_state_for_every_block_is_refused():
    student, batch, trace = pair("BERT")
    for states, message in (
        (None, "lacks hidden_states, which block needs"),
        (trace.hidden_states[:-1], "reports 2 hidden states for 2 layers"),
    ):
        with pytest.raises(TrituneError, match=message):
            student(**batch, intervention=Intervention(Site.BLOCK, ModelTrace(trace.layers, states)))
    with pytest.raises(
        TrituneError, match=r"hidden_states of layer 0 has shape \(3, 6, 16\), the student's \(1, 6, 16"
    ):
        first = {key: value[:1] for key, value in zoo_text_batch().items()}
        student(**first, intervention=Intervention(Site.BLOCK, trace))


def test_layers_that_are_no_blocks_are_refused_at_this_site_only():
    student, batch, trace = pair("Swin")
    with pytest.raises(UnsupportedModelError, match="its layers are not blocks each of which takes what the one"):
        student(**batch, intervention=Intervention(Site.BLOCK, trace))
    teacher = SERVED["Swin"].build()
    with pytest.raises(UnsupportedModelError, match="its layers are not blocks"):
        pairing(student, teacher, {"logits": 1.0}, "block", None)
    for site in ATTENTION_SITES:
        pairing(student, teacher, {"logits": 1.0}, site.value, None)


def test_states_of_another_width_cannot_be_plugged_in_even_where_they_are_projected():
    student, teacher = tritune.prepare(bert(2, hidden_size=8)), bert(2)
    assert pairing(student, teacher, {"hidden_states": 1.0}, None, "last").hidden_widths == (8, 16)
    with pytest.raises(TrituneError, match=r"schedule block plugs in block \(width 8 against 16\): set it to null"):
        pairing(student, teacher, {"hidden_states": 1.0}, "block", "last")


def test_the_trainer_lets_the_teachers_share_fall_from_step_to_step(tmp_path):
    teacher = BERT.build(seed=1)
    student = tritune.prepare(copy.deepcopy(teacher))
    handed = []
    student.register_forward_pre_hook(
        lambda module, args, kwargs: handed.append(kwargs["intervention"]), with_kwargs=True, prepend=True
    )
    before = {key: parameter.clone() for key, parameter in student.named_parameters()}
    run = trainer(
        tmp_path,
        student,
        teacher,
        arguments_values={"max_steps": 4},
        schedule="block",
        coefficients={"logits": 1.0, "hidden_states": 1.0},
    )
    run.train()
    assert [(one.site, one.weight) for one in handed] == [(Site.BLOCK, weight) for weight in (1, 0.75, 0.5, 0.25)]
    assert run.site_name() == "block"
    assert {key for key, parameter in student.named_parameters() if torch.equal(parameter, before[key])} <= {
        key
        for key in before
        if key.endswith("key.bias")  # the softmax does not see it
    }


@torch.no_grad()
def test_an_assisted_answer_mixes_too():
    student, batch, trace = pair("BERT")
    student.eval()
    found = [{key: values[row] for key, values in batch.items()} for row in range(3)]

    def collate(items):
        return {key: torch.stack([item[key] for item in items]) for key in items[0]}

    teacher = tritune.instrument(SERVED["BERT"].build(seed=1))
    for weight in (0.0, 0.25, 1.0):
        answer = assisted_logits(student, teacher, Site.BLOCK, found, collate, 3, weight=weight)
        assert torch.equal(torch.tensor(answer), by_hand(student, batch, trace.hidden_states, weight)[1])


def test_a_run_through_both_steps(tmp_path, cli):
    make_workspace(tmp_path)
    settings = [
        word for setting in ("max_steps=12", "schedule=block", "logging_steps=1") for word in ("--set", setting)
    ]
    code, _, err = cli(*train_arguments(tmp_path, tmp_path / "run", *settings))
    assert code == 0, err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["assisted"]["site"] == "block" and metrics["assisted"]["step"] == 3
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").open()]
    assert [line["site"] for line in history if "loss" in line] == ["block"] * 3 + [None] * 9
    code, _, err = cli("report", tmp_path / "run", "--output", tmp_path / "report.html")
    assert code == 0, err
    assert "block inside" in (tmp_path / "report.html").read_text()
