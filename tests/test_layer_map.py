"""Students of another depth or width: maps, mapped losses and tensors, the learned projection, and what cannot be."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

import tritune
from families import FAMILIES, HEADS, TOKENS, text_batch
from test_losses import (
    ALL,
    map_kl_loop,
    mask_of,
    mean,
    output_of,
    score_mse_loop,
    soft_cross_entropy_loop,
    token_mse_loop,
)
from test_teacher_cache import EVERYTHING, FIELDS, numbered
from test_trainer import BERT, LR, STEPS, InOrder, arguments, rows, stack, trainer
from tritune import Intervention, LayerTrace, ModelTrace, Quantization, Site, TrituneError
from tritune.distil.layer_map import mapped_layers
from tritune.distil.losses import Pair, distillation_losses
from tritune.distil.schedule import SCHEDULES
from tritune.modeling.shrink import shrink
from tritune.modeling.sites import ATTENTION_SITES
from tritune.recipes import load_recipe
from tritune.training.hidden_projection import HiddenProjection
from tritune.training.optimizer import BertAdam
from tritune.training.pairing import Pairing, pairing
from tritune.training.teacher_cache import TeacherCache
from tritune.training.trainer import TERNARYBERT

MAP = (3, 1)
every_average = pytest.mark.parametrize("average", ["padded", "valid"])
every_site = pytest.mark.parametrize("site", ATTENTION_SITES)


def bert(layers: int = 4, seed: int = 1, **values) -> BertForSequenceClassification:
    """A tiny BERT of another depth, or another width or number of heads."""
    config = BertConfig(**(BERT.config().to_dict() | {"num_hidden_layers": layers} | values))
    return replace(BERT, config=lambda: config).build(seed)


@pytest.mark.parametrize(
    ("choice", "student", "teacher", "expected"),
    [
        ("uniform", 4, 12, (2, 5, 8, 11)),  # TinyBERT-4L: g(m) = 3m
        ("uniform", 6, 12, (1, 3, 5, 7, 9, 11)),
        ("uniform", 6, 24, (3, 7, 11, 15, 19, 23)),
        ("uniform", 4, 6, (1, 2, 4, 5)),
        ("uniform", 3, 3, (0, 1, 2)),
        ("uniform", 4, 2, (0, 0, 1, 1)),
        ("uniform", 1, 12, (11,)),
        ("last", 4, 12, (8, 9, 10, 11)),
        ("last", 2, 2, (0, 1)),
        ((1, 3, 5), 3, 6, (1, 3, 5)),
        ((5, 5, 0), 3, 6, (5, 5, 0)),
        (None, 3, 3, None),
    ],
)
def test_maps(choice, student, teacher, expected):
    assert mapped_layers(choice, student, teacher) == expected


def test_a_uniform_map_is_spread_out_and_ends_at_the_last_layer():
    for student in range(1, 25):
        for teacher in range(1, 25):
            found = mapped_layers("uniform", student, teacher)
            assert len(found) == student and found[-1] == teacher - 1 and found[0] >= 0
            steps = {after - before for before, after in itertools.pairwise(found)}
            assert steps <= {teacher // student, -(-teacher // student)}


@pytest.mark.parametrize(
    ("choice", "student", "teacher", "message"),
    [
        (None, 3, 6, "the student has 3 layers and the teacher 6: layer_map must say"),
        ("middle", 3, 6, "layer_map must be uniform, last, a list of layers counted from 0, or null; got 'middle'"),
        ("last", 6, 3, "the teacher has only 3 layers for the student's 6"),
        ((1, 3), 3, 6, r"a teacher layer for each of the student's 3; got \[1, 3\]"),
        ((1, 3, 6), 3, 6, "there is no layer 6; the teacher's layers are 0 to 5"),
        ((1, 3, -1), 3, 6, "layer_map must be uniform"),
        ((1, 3, True), 3, 6, "layer_map must be uniform"),
        ((), 3, 6, "layer_map must be uniform"),
    ],
)
def test_maps_that_cannot_be(choice, student, teacher, message):
    with pytest.raises(TrituneError, match=message):
        mapped_layers(choice, student, teacher)


def test_the_recipe_key():
    assert load_recipe("ti-g").layer_map is None
    assert load_recipe("ti-g", ["layer_map=[1, 3]"]).layer_map == (1, 3)
    assert load_recipe("ti-g", ["layer_map=last"]).layer_map == "last"
    for value, message in (("middle", "must be uniform"), ("[]", "must be uniform"), ("2", "must be text or a list")):
        with pytest.raises(TrituneError, match=f"layer_map {message}"):
            load_recipe("ti-g", [f"layer_map={value}"])
    alone = [f"{name}_coefficient=0" for name in ("hidden_states", "attention_scores", "block_output")]
    assert load_recipe("ti-g", [*alone, "layer_map=last"]).layer_map == "last", "the intervention needs it"
    with pytest.raises(TrituneError, match="layer_map would change nothing"):
        load_recipe("ternarybert", [*alone[:2], "layer_map=last"])


@every_average
@pytest.mark.parametrize("lengths", [[5, 3, 2], [1], [4, 0]], ids=str)
def test_mapped_losses(lengths, average):
    """Two layers that learn from four, against loops that count the teacher's layers by hand."""
    student, teacher, mask = output_of(lengths, 2), output_of(lengths, 4), mask_of(lengths)
    labels = torch.zeros(len(lengths), dtype=torch.long)
    whole, teacher.trace = teacher.trace, teacher.trace.mapped(MAP)
    found = distillation_losses(Pair(student, teacher, mask, labels, average), ALL | {"ground_truth": 0})

    def total(loop, field, *more):
        pairs = ((student.trace.layers[0], whole.layers[3]), (student.trace.layers[1], whole.layers[1]))
        return sum(loop(getattr(own, field), getattr(theirs, field), lengths, *more) for own, theirs in pairs)

    states, theirs = student.trace.hidden_states, whole.hidden_states
    heads = range(HEADS)
    expected = {
        "logits": soft_cross_entropy_loop(student.logits, teacher.logits),
        "hidden_states": sum(
            token_mse_loop(states[i], theirs[j], lengths, average) for i, j in ((0, 0), (1, 4), (2, 2))
        ),
        "attention_scores": total(score_mse_loop, "attention_scores", average),
        "attention_map": total(map_kl_loop, "attention_probs"),
        "block_output": total(token_mse_loop, "attention_block_output", average),
        "projection": total(token_mse_loop, "attention_projection", average),
        "context": total(
            lambda own, teachers, *more: mean(token_mse_loop(own[:, h], teachers[:, h], *more) for h in heads),
            "context",
            average,
        ),
    }
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-9)


def test_hidden_states_that_belong_to_no_layer_cannot_be_mapped():
    trace = ModelTrace([LayerTrace()] * 4, [torch.zeros(1)] * 3)
    assert trace.mapped(None) is trace
    with pytest.raises(TrituneError, match="3 hidden states for 4 layers"):
        trace.mapped((1, 3))


def used(student, layer: int, site: Site) -> list[torch.Tensor]:
    """Collects what the student's layer goes on with at `site`, at every forward pass."""
    found, attention = [], student.bert.encoder.layer[layer].attention
    if site is Site.MAP:
        attention.self.register_forward_hook(lambda module, args, output: found.append(output[1]))
    elif site is Site.CONTEXT:
        attention.output.dense.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    else:
        attention.output.dense.register_forward_hook(lambda module, args, output: found.append(output))
    return found


@every_site
@pytest.mark.parametrize("layer_map", [(1, 3), (3, 1), (0, 0)], ids=str)
def test_each_layer_gets_its_teacher_layers_tensor(site, layer_map):
    """And nothing but the named weights goes without a gradient."""
    teacher, batch = bert(4), text_batch()
    student = tritune.prepare(shrink(teacher, [1, 3])).train()
    with torch.no_grad():
        theirs = tritune.instrument(teacher)(**batch, output_trace=True)
    seen = [used(student, layer, site) for layer in range(2)]
    whole, theirs.trace = theirs.trace, theirs.trace.mapped(layer_map)
    output = student(**batch, output_trace=True, intervention=Intervention(site, theirs.trace))
    for (got,), layer in zip(seen, layer_map, strict=True):
        expected = getattr(whole.layers[layer], site.field)
        if site is Site.CONTEXT:
            expected = expected.transpose(1, 2).flatten(2)
        assert torch.equal(got, expected)
    sum(distillation_losses(Pair(output, theirs, batch["attention_mask"]), TERNARYBERT).values()).backward()
    cut = {Site.MAP: (), Site.CONTEXT: ("self.value",), Site.PROJECTION: ("self.value", "output.dense")}[site]
    expected = {
        f"bert.encoder.layer.{layer}.attention.{name}.{kind}"
        for layer in range(2)
        for name in cut
        for kind in ("weight", "bias")
    }
    assert {name for name, parameter in student.named_parameters() if parameter.grad is None} == expected


@every_site
@torch.no_grad()
def test_the_first_layers_of_a_teacher_are_their_own_teacher(site):
    """A float student of layers 0 and 1 computes what they compute, so putting it in changes no bit."""
    teacher, batch = tritune.instrument(bert(4)), text_batch()
    student = tritune.instrument(shrink(teacher, [0, 1]))
    trace = teacher(**batch, output_trace=True).trace
    expected = student(**batch).logits
    assert torch.equal(student(**batch, intervention=Intervention(site, trace.mapped((0, 1)))).logits, expected)
    assert not torch.equal(student(**batch, intervention=Intervention(site, trace.mapped((2, 3)))).logits, expected)


@pytest.mark.parametrize(("schedule", "average"), [(None, "valid"), ("gradual", "padded")])
def test_training_with_a_map_is_the_loop(tmp_path, schedule, average):
    coefficients = {"logits": 1.0, "hidden_states": 1.0, "attention_map": 0.5, "block_output": 2.0}
    teacher = bert(4)
    student = shrink(teacher, [1, 3])
    loop, untouched = tritune.prepare(copy.deepcopy(student)).train(), tritune.instrument(bert(4))
    run = trainer(
        tmp_path,
        tritune.prepare(student),
        teacher,
        coefficients=coefficients,
        schedule=schedule,
        loss_average=average,
        layer_map=MAP,
    )
    run.train()
    decay = [p for n, p in loop.named_parameters() if "bias" not in n and "LayerNorm" not in n]
    spared = [p for n, p in loop.named_parameters() if "bias" in n or "LayerNorm" in n]
    groups = [{"params": decay, "weight_decay": 0.0}, {"params": spared, "weight_decay": 0.0}]
    optimizer = BertAdam(groups, lr=LR, total_steps=STEPS, eps=run.args.adam_epsilon)
    logs = [log for log in run.state.log_history if "loss" in log]
    for step in range(STEPS):
        batch = stack(rows()[3 * (step % 4) :][:3])
        batch.pop("labels")
        with torch.no_grad():
            theirs = untouched(**batch, output_trace=True)
        whole, states = theirs.trace.layers, theirs.trace.hidden_states
        theirs.trace = ModelTrace([whole[3], whole[1]], [states[0], states[4], states[2]])
        site = SCHEDULES[schedule](step, STEPS, 3) if schedule else None
        output = loop(**batch, output_trace=True, intervention=site and Intervention(site, theirs.trace))
        losses = distillation_losses(Pair(output, theirs, batch["attention_mask"], average=average), coefficients)
        optimizer.zero_grad()
        sum(coefficients[name] * loss for name, loss in losses.items()).backward()
        optimizer.step()
        for name, loss in losses.items():
            assert logs[step][f"{name}_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert all(torch.equal(own, other) for own, other in zip(run.model.parameters(), loop.parameters(), strict=True))


def test_only_the_mapped_layers_of_the_teacher_are_recorded(tmp_path):
    run = trainer(
        tmp_path,
        tritune.prepare(bert(3, seed=0)),
        bert(6),
        coefficients={"attention_map": 1.0},
        layer_map="uniform",
        distil_layers=(0, 2),
    )
    assert run.trace_wanted == {"attention_probs": (0, 2)} and run.teacher_trace_wanted == {"attention_probs": (1, 5)}


def test_the_layers_that_were_kept_are_the_default(tmp_path):
    teacher = bert(4)
    student = shrink(teacher, [0, 3])
    assert pairing(student, teacher, TERNARYBERT, None, None) == Pairing((0, 3))
    assert pairing(student, teacher, TERNARYBERT, None, "uniform") == Pairing((1, 3))
    # As a teacher of its own, it is an ordinary model of two layers.
    assert pairing(copy.deepcopy(student), student, TERNARYBERT, "gradual", None) == Pairing()
    with pytest.raises(TrituneError, match="the student has 2 layers and the teacher 5"):
        pairing(student, bert(5), TERNARYBERT, None, None)
    assert pairing(student, bert(5), {"logits": 1.0}, None, None) == Pairing(), "logits need no map"
    with pytest.raises(TrituneError, match="the student has 2 layers and the teacher 5"):
        pairing(student, bert(5), {"logits": 1.0}, "map", None)


def test_a_cached_teacher_of_another_depth(tmp_path):
    teacher = tritune.instrument(bert(4))
    with torch.no_grad():
        sample = teacher(**text_batch(), output_trace=FIELDS)
    sample.trace = sample.trace.mapped(MAP)
    logs = []
    for cache in (None, TeacherCache(tmp_path / "cache", 12, TOKENS, FIELDS, sample)):
        values = {"max_steps": 9}
        run = trainer(
            tmp_path,
            tritune.prepare(bert(2, seed=0)),
            teacher,
            data=numbered(12),
            arguments_values=values,
            coefficients=EVERYTHING,
            layer_map=MAP,
            teacher_cache=cache,
        )
        run.train()
        logs.append([log["loss"] for log in run.state.log_history if "loss" in log])
    assert cache.filled.all() and len(logs[0]) == 9 and logs[0] == pytest.approx(logs[1], rel=1e-5)


NARROW = {"hidden_size": 12, "intermediate_size": 20}
FITTING = {"logits": 1.0, "hidden_states": 1.0, "attention_scores": 1.0, "attention_map": 0.5}


def narrow_run(folder, **values):
    """Two layers of width 12 that learn from four of width 16, with as many heads."""
    return trainer(
        folder,
        tritune.prepare(bert(2, seed=0, **NARROW)),
        bert(4),
        coefficients=FITTING,
        layer_map="uniform",
        **values,
    )


def test_hidden_states_of_another_width_are_projected(tmp_path):
    """TinyBERT's W_h and W_e learn along, in the same optimizer, and no trace of them is in the student."""
    run = narrow_run(tmp_path, schedule="map", arguments_values={"weight_decay": 0.2})
    run.train()
    loop, teacher = tritune.prepare(bert(2, seed=0, **NARROW)).train(), tritune.instrument(bert(4))
    maps = HiddenProjection(12, 16, seed=3)
    decay = [p for n, p in loop.named_parameters() if "bias" not in n and "LayerNorm" not in n]
    spared = [p for n, p in loop.named_parameters() if "bias" in n or "LayerNorm" in n]
    groups = [{"params": part, "weight_decay": 0.2} for part in (decay, list(maps.parameters()))]
    groups.append({"params": spared, "weight_decay": 0.0})
    optimizer = BertAdam(groups, lr=LR, total_steps=STEPS, eps=run.args.adam_epsilon)
    logs = [log for log in run.state.log_history if "loss" in log]
    for step in range(STEPS):
        batch = stack(rows()[3 * (step % 4) :][:3])
        batch.pop("labels")
        with torch.no_grad():
            theirs = teacher(**batch, output_trace=True)
        theirs.trace = theirs.trace.mapped((1, 3))
        output = loop(**batch, output_trace=True, intervention=Intervention(Site.MAP, theirs.trace))
        losses = distillation_losses(Pair(output, theirs, batch["attention_mask"]), FITTING | {"hidden_states": 0})
        weights = [maps.embeddings, maps.layers, maps.layers]
        pairs = zip(output.trace.hidden_states, weights, theirs.trace.hidden_states, strict=True)
        losses["hidden_states"] = sum(((own @ weight - other) ** 2).mean() for own, weight, other in pairs)
        optimizer.zero_grad()
        sum(FITTING[name] * loss for name, loss in losses.items()).backward()
        optimizer.step()
        assert logs[step]["hidden_states_loss"] == pytest.approx(losses["hidden_states"].item(), rel=1e-5)
    assert run.hidden_projection.layers.shape == (12, 16)
    for own, other in ((run.model, loop), (run.hidden_projection, maps)):
        for parameter, expected in zip(own.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-6)
    assert not torch.equal(run.hidden_projection.layers, HiddenProjection(12, 16, seed=3).layers)
    run.model.save_pretrained(tmp_path / "student")
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "student").eval()
    with torch.no_grad():
        assert torch.equal(loaded(**text_batch()).logits, run.model.eval()(**text_batch()).logits)


@pytest.mark.parametrize("optimizer", ["bert_adam", "adamw"])
def test_a_projected_run_resumes_on_the_same_bits(tmp_path, optimizer):
    final = []
    for checkpoint in (None, tmp_path / "checkpoint-3"):
        values = {"save_strategy": "steps", "save_steps": 3}
        run = narrow_run(tmp_path, arguments_values=values, optimizer=optimizer, schedule="map")
        run.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        final.append([*run.model.parameters(), *run.hidden_projection.parameters()])
    assert all(torch.equal(own, expected) for own, expected in zip(*final, strict=True))


def test_a_projection_and_an_optimizer_of_ones_own(tmp_path):
    student = tritune.prepare(bert(4, seed=0, **NARROW))
    own = (torch.optim.SGD(student.parameters(), 0.1), None)
    with pytest.raises(
        TrituneError, match="hidden states of widths 12 and 16 need projections that your own optimizer"
    ):
        trainer(tmp_path, student, bert(4), coefficients=FITTING, optimizers=own)


@pytest.mark.parametrize(
    ("values", "coefficients", "schedule", "messages"),
    [
        (
            NARROW,
            {"hidden_states": 1.0, "attention_scores": 1.0, "block_output": 1.0, "context": 0.0, "projection": 0.5},
            "gradual",
            (
                r"block_output \(width 12 against 16\), projection \(width 12 against 16\)",
                "set block_output_coefficient, projection_coefficient to 0",
                r"schedule gradual plugs in context \(head width 6 against 8\), projection \(width 12 against 16\)",
                "set it to map, or null",
            ),
        ),
        (
            {"num_attention_heads": 4},
            {"logits": 1.0, "attention_scores": 1.0, "attention_map": 1.0, "block_output": 1.0},
            "map",
            (
                r"attention_scores \(heads 4 against 2\), attention_map \(heads 4 against 2\): set "
                "attention_scores_coefficient, attention_map_coefficient to 0",
                r"schedule map plugs in map \(heads 4 against 2\): set it to null",
            ),
        ),
        (
            {"num_attention_heads": 4},
            {"logits": 1.0},
            "stochastic",
            (r"context \(heads 4 against 2, head width 4 against 8\): set it to projection, or null",),
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, values, coefficients, schedule, messages):
    student = tritune.prepare(bert(4, seed=0, **values))
    for message in messages:
        with pytest.raises(TrituneError, match=message):
            trainer(tmp_path, student, bert(4), coefficients=coefficients, schedule=schedule)


def test_what_fits_a_student_of_other_heads():
    """One tensor per layer of the same width whatever the heads: hidden states, block outputs, projections."""
    coefficients = {"hidden_states": 1.0, "block_output": 1.0, "projection": 1.0}
    found = pairing(bert(2, seed=0, num_attention_heads=4), bert(4), coefficients, "projection", "last")
    assert found == Pairing((2, 3))


def test_images_cut_into_other_patches():
    def vit(patch_size):
        config = ViTConfig(**(FAMILIES["vit"].config().to_dict() | {"patch_size": patch_size}))
        return ViTForImageClassification(config)

    with pytest.raises(TrituneError, match=r"attention_map \(queries 17 against 5, keys 17 against 5\)"):
        pairing(vit(2), vit(4), {"attention_map": 1.0}, None, "uniform")
    with pytest.raises(TrituneError, match=r"hidden_states \(tokens 17 against 5\)"):
        pairing(vit(2), vit(4), {"hidden_states": 1.0}, None, "uniform")


def tinybert(seed: int = 0) -> BertForSequenceClassification:
    """As odd as TinyBERT-4L, whose 312 numbers are 12 heads of 26; no multiple of any word of a processor."""
    return bert(4, seed=seed, hidden_size=52, num_attention_heads=2, intermediate_size=75)


@torch.no_grad()
def test_a_teacher_of_heads_of_26_and_its_own_student():
    """With the teacher's projection in every layer, a student whose attention alone is quantized is its teacher."""
    switches = dict.fromkeys(("ffn_in", "ffn_out", "embeddings", "pooler"), False)
    teacher = tritune.instrument(tinybert())
    student = tritune.prepare(tinybert(), Quantization(**switches))
    batch = text_batch()
    theirs = teacher(**batch, output_trace=True)
    assert not torch.equal(student(**batch).logits, theirs.logits)
    own = student(**batch, intervention=Intervention(Site.PROJECTION, theirs.trace)).logits
    assert torch.equal(own, theirs.logits)


def test_self_distillation_with_heads_of_26(tmp_path):
    """As the published systems train TinyBERT-4L, from a float model of its own shape, at every site; then packed."""
    coefficients = {"logits": 1.0, "hidden_states": 1.0, "attention_scores": 1.0, "block_output": 1.0}
    run = trainer(tmp_path, tritune.prepare(tinybert()), tinybert(), coefficients=coefficients, schedule="gradual")
    assert run.layer_map is None and run.hidden_projection is None
    run.train()
    losses = [log["loss"] for log in run.state.log_history if "loss" in log]
    assert len(losses) == STEPS and all(torch.tensor(losses).isfinite())
    student = run.model.eval()
    with torch.no_grad():
        expected = student(**text_batch()).logits
        assert torch.equal(tritune.convert(student)(**text_batch()).logits, expected)


def test_a_mapped_run_resumes_on_the_same_bits(tmp_path):
    final = []
    for checkpoint in (None, tmp_path / "checkpoint-3"):
        args = arguments(tmp_path, save_strategy="steps", save_steps=3)
        teacher = bert(4)
        run = InOrder(
            model=tritune.prepare(shrink(teacher, [1, 3])),
            teacher=teacher,
            args=args,
            train_dataset=rows(),
            schedule="gradual",
        )
        assert run.layer_map == (1, 3)
        run.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        final.append(list(run.model.parameters()))
    assert all(torch.equal(own, expected) for own, expected in zip(*final, strict=True))
