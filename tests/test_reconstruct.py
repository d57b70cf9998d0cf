"""Block-wise reconstruction: a model taken apart is the model; every stage against a loop written by hand."""

import copy

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F
from transformers import AlbertConfig, AlbertForSequenceClassification

import tritune
from families import FAMILIES, VOCABULARY, one_layer, text_batch
from tritune import Quantization, TrituneError, UnsupportedModelError
from tritune.distil.reconstruct import Reconstruction
from tritune.distil.states import States
from tritune.modeling.blocks import Blocks
from tritune.modeling.instrument import instrument, instrument_of
from tritune.tasks.heads import FEATURE_EXTRACTION
from tritune.training.reconstruct import check_models
from zoo import SERVED

DEPLOYED = Quantization(
    weight_granularity="row", activation_granularity="token", weight_clip=None, activation_clip=None
)
every_family = pytest.mark.parametrize("name", FAMILIES)
# All that the project serves; of these Swin alone merges tokens between its blocks.
FOLLOWING = [name for name in SERVED if name != "Swin"]


def logits_mse(own, theirs, batch):
    return F.mse_loss(own.logits, theirs.logits)


def pair(name: str, quantization: Quantization = DEPLOYED):
    family = FAMILIES[name]
    teacher = instrument(family.build())
    return tritune.prepare(family.build(), quantization), teacher, family.batch()


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    """Of different lengths, each with padding and a sequence of one token."""
    return [text_batch(tokens) for tokens in range(4, 4 + count)]


def work(student, teacher, given, **settings) -> Reconstruction:
    return Reconstruction(student, teacher, given, logits_mse, **({"steps": 6, "learning_rate": 3e-3} | settings))


def trained(name: str = "bert", given=None, **settings):
    student, teacher, batch = pair(name)
    stages = list(work(student, teacher, given or [batch], **settings).stages())
    return student, stages


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", FOLLOWING)
@torch.no_grad()
def test_the_parts_are_the_whole(name):
    model = tritune.prepare(SERVED[name].build(), SERVED[name].quantization).eval()
    batch, blocks = SERVED[name].batch(), Blocks(model)
    state, calls = blocks.stem(batch)
    states = [state]
    for layer, call in enumerate(calls):
        states.append(blocks.block(layer, states[-1], call))
    whole = model(**batch, output_trace=["hidden_states"])
    assert all(map(torch.equal, states[:-1], whole.trace.hidden_states))
    assert torch.equal(blocks.answer(batch, states[-1])[0], whole[0])


def test_a_model_whose_blocks_do_not_follow_each_other_is_refused():
    with pytest.raises(UnsupportedModelError, match="its layers are not blocks each of which takes what the one"):
        Blocks(instrument(SERVED["Swin"].build()))


def test_taking_a_model_apart_leaves_it_as_it_is():
    student, _, batch = pair("bert")
    modules, before = dict(student.named_modules()), student.eval()(**batch).logits
    blocks = Blocks(student)
    blocks.stem(batch)
    assert dict(student.named_modules()) == modules and torch.equal(student(**batch).logits, before)


def by_hand(student, teacher, given, layer: int, steps: int, rate: float, order) -> None:
    """Train one BERT layer; its inputs and targets are read by hooks in whole passes of both models."""
    own, theirs = (model.bert.encoder.layer[layer] for model in (student, teacher))
    optimizer = torch.optim.Adam(own.parameters())
    for step, place in enumerate(order):
        read = []
        hook = theirs.register_forward_hook(lambda module, args, output, read=read: read.append(output.detach()))
        with torch.no_grad():
            teacher(**given[place])
        hook.remove()
        hooks = [
            own.register_forward_pre_hook(lambda module, args: (args[0].detach(), *args[1:])),
            own.register_forward_hook(lambda module, args, output, read=read: read.append(output)),
        ]
        student(**given[place])
        for hook in hooks:
            hook.remove()
        errors = []
        for row, mask in enumerate(given[place]["attention_mask"]):
            real = mask.nonzero().flatten()
            errors.append(torch.stack([(read[1][row, t] - read[0][row, t]).square().mean() for t in real]).mean())
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        torch.stack(errors).mean().backward()
        optimizer.step()
    student.zero_grad()


def test_a_block_is_trained_as_by_hand():
    student, teacher, _ = pair("bert", Quantization(weight_granularity="row", activation_bits=None, weight_clip=None))
    student, teacher = student.double().eval(), teacher.double().eval()
    given, twin = batches(3), copy.deepcopy(student)
    stages = work(student, teacher, given, steps=5).stages()
    next(stages)  # the embeddings
    twin.load_state_dict(student.state_dict())
    for layer in range(2):
        order = list(work(student, teacher, given, steps=5)._order(layer + 1))
        by_hand(twin, teacher, given, layer, 5, 3e-3, order)
        stage = next(stages)
        assert stage.name == f"block {layer}" and stage.after < stage.before
        for (name, mine), other in zip(student.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12, msg=name)


@every_family
def test_every_stage_changes_its_own_part_and_makes_it_no_worse(name):
    student, teacher, batch = pair(name)
    before, theirs = weights(student), weights(teacher)
    blocks, changed = dict.fromkeys(Blocks(student).names), set()
    for stage in work(student, teacher, [batch], steps=20).stages():
        now = weights(student)
        moved = {key for key, value in now.items() if not torch.equal(value, before[key])}
        assert not moved & changed, "no later stage touches what an earlier one made"
        assert stage.after <= stage.before and (moved or stage.after == stage.before)
        if stage.name.startswith("block"):
            (own,) = {block for block in blocks if any(key.startswith(f"{block}.") for key in moved)}
            assert all(key.startswith(f"{own}.") for key in moved) and stage.after < 0.8 * stage.before
        changed, before = changed | moved, now
    assert all(torch.equal(value, theirs[key]) for key, value in weights(teacher).items())
    assert not student.training


def test_the_answer_comes_closer():
    student, teacher, batch = pair("bert")
    with torch.no_grad():
        start = logits_mse(student.eval()(**batch), teacher.eval()(**batch), batch)
        list(work(student, teacher, [batch], steps=40).stages())
        assert logits_mse(student(**batch), teacher(**batch), batch) < 0.1 * start


@pytest.mark.parametrize("name", ["bert", "albert", "modernbert"])
def test_going_on_after_a_stage_gives_the_same_bits(name):
    whole, stages = trained(name)
    for finished in range(1, len(stages)):
        student, teacher, batch = pair(name)
        begun = work(student, teacher, [batch]).stages()
        for _ in range(finished):
            next(begun)
        again = tritune.prepare(FAMILIES[name].build(), DEPLOYED)
        again.load_state_dict(student.state_dict())
        rest = list(work(again, teacher, [batch]).stages(finished))
        assert rest == stages[finished:]
        assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(again).items())


def test_layers_that_share_weights_are_trained_together():
    assert [stage.name for stage in trained("albert")[1]] == ["embeddings", "blocks 0-2", "head"]


def test_layers_between_two_that_share_weights_are_trained_with_them():
    config = AlbertConfig(
        vocab_size=VOCABULARY, embedding_size=12, hidden_size=16, num_hidden_layers=4, inner_group_num=2,
        num_attention_heads=2, intermediate_size=24, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
    )  # fmt: skip
    models = [AlbertForSequenceClassification._from_config(config, attn_implementation="eager") for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    stages = work(tritune.prepare(models[0], DEPLOYED), instrument(models[1]), batches(2)).stages()
    layers = instrument_of(models[1]).anatomy.sites
    assert [stage.name for stage in stages] == ["embeddings", f"blocks 0-{len(layers) - 1}", "head"]


def test_a_shallower_student_learns_from_the_layers_of_its_map():
    teacher = instrument(FAMILIES["bert"].build())
    student = tritune.prepare(one_layer("bert").build(), DEPLOYED)
    targets = {}
    for layer in (0, 2):
        own = copy.deepcopy(student)
        stages = list(work(own, teacher, batches(2), layer_map=(layer,)).stages())
        assert [stage.name for stage in stages] == ["embeddings", "block 0", "head"]
        targets[layer] = stages[1].before
    with torch.no_grad():
        states = teacher(**batches(1)[0], output_trace=["hidden_states"]).trace.hidden_states
    assert len(states) == 4 and targets[0] != targets[2]
    for wrong, message in (((3,), "1 layers and the teacher 3"), ((0, 1), "1 layers and the teacher 3")):
        with pytest.raises(TrituneError, match=message):
            work(student, teacher, batches(1), layer_map=wrong)
    two = tritune.prepare(FAMILIES["bert"].build(), DEPLOYED)
    with pytest.raises(TrituneError, match="must ascend"):
        work(two, teacher, batches(1), layer_map=(0, 2, 1))


@pytest.mark.parametrize(
    "batch",
    [
        {"input_ids": torch.tensor([[3]]), "attention_mask": torch.tensor([[1]])},
        {"input_ids": torch.tensor([[3, 4], [0, 0]]), "attention_mask": torch.tensor([[1, 1], [0, 0]])},
        {"input_ids": torch.tensor([[3, 4, 5]])},
    ],
    ids=["one token", "an empty sequence", "no mask"],
)
def test_odd_batches(batch):
    _, stages = trained("bert", [batch])
    assert len(stages) == 5 and all(0 <= stage.after <= stage.before < torch.inf for stage in stages)


def test_a_loss_that_is_not_finite_is_one_line():
    student, teacher, batch = pair("bert")
    with torch.no_grad():
        teacher.bert.encoder.layer[1].output.dense.bias.fill_(torch.nan)
    with pytest.raises(TrituneError, match="the loss of block 1 is not finite"):
        list(work(student, teacher, [batch]).stages())


# Hidden states within a budget.


@pytest.mark.parametrize(("budget", "exact", "on_disk"), [(10**6, True, False), (2500, False, False), (0, False, True)])
def test_states_come_back(budget, exact, on_disk):
    given = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]  # 4 kB in all
    states = States(budget, len(given))
    for place, state in enumerate(given):
        states[place] = state
    states[1] = given[1] + 1
    assert (states._folder is not None) == on_disk
    expected = [given[0], given[1] + 1, *given[2:]]
    for place, state in enumerate(expected):
        assert states[place].dtype is torch.float32
        assert torch.equal(states[place], state if exact else state.half().float())
    if on_disk:
        with safe_open(states._file(0), framework="pt") as file:
            assert file.get_tensor("state").dtype is torch.float16


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("budget", [10**6, 0])
def test_states_keep_their_precision(dtype, budget):
    states = States(budget, 1)
    states[0] = torch.ones(2, 3, 4, dtype=dtype)
    copied = states.copy()
    states[0] = torch.zeros(2, 3, 4, dtype=dtype)
    assert states[0].dtype is copied[0].dtype is dtype
    assert not states[0].any() and copied[0].all()


def test_an_update_that_ends_in_nothing_is_taken_back():
    """A loss that is finite at every step and not a number at the end."""
    student, teacher, batch = pair("bert")
    before, calls = weights(student), []

    def breaking(own, theirs, batch):
        calls.append(1)
        return logits_mse(own, theirs, batch) + (torch.nan if len(calls) > 5 else 0.0)  # 1 probe, 1 before, 3 steps

    stages = list(Reconstruction(student, teacher, [batch], breaking, steps=3).stages())
    assert stages[-1].name == "head" and stages[-1].after == stages[-1].before
    assert all(torch.equal(value, before[name]) for name, value in weights(student).items() if "classifier" in name)


def test_less_memory_gives_nearly_the_same_errors():
    """Before anything is trained; what follows drifts apart, as two trainings that differ in a last bit do."""
    whole, halved = (trained("bert", batches(3), cache_bytes=bytes_)[1] for bytes_ in (2**30, 0))
    assert halved[0].before == pytest.approx(whole[0].before, rel=2**-10) and halved[0].before != whole[0].before
    assert all(stage.after < stage.before for stage in halved)


# `tritune.reconstruct`


class Letters:
    """A tokenizer of one token a letter, which pads on the right."""

    def __call__(self, *texts, padding, truncation, max_length, return_tensors):
        rows = [
            [3 + ord(letter) % (VOCABULARY - 3) for letter in "".join(parts)][:max_length]
            for parts in zip(*texts, strict=True)
        ]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


@pytest.mark.parametrize("texts", [["one", "another one", "a third"], [("one", "two"), ("three", "four")]])
def test_texts_are_enough(texts):
    student, teacher, _ = pair("bert")
    told = []
    stages = tritune.reconstruct(student, teacher, texts, Letters(), steps=4, batch_size=2, told=told.append)
    assert stages == told and [stage.name for stage in stages][::4] == ["embeddings", "head"]
    again, _, _ = pair("bert")
    assert tritune.reconstruct(again, teacher, texts, Letters(), steps=4, batch_size=2) == stages


def test_no_more_rows_are_read_than_steps_ask_for():
    seen = []

    class Counting(Letters):
        def __call__(self, *texts, **settings):
            seen.append(len(texts[0]))
            return super().__call__(*texts, **settings)

    student, teacher, _ = pair("bert")
    tritune.reconstruct(student, teacher, ["text"] * 50, Counting(), steps=3, batch_size=4)
    assert seen == [4, 4, 4]


def test_labels_are_not_read():
    given = [batch | {"labels": torch.tensor([9, 9, 9])} for batch in batches(2)]
    student, teacher, _ = pair("bert")
    assert len(tritune.reconstruct(student, teacher, given, steps=2)) == 5


def test_a_sentence_encoder_ends_with_its_embeddings():
    from transformers import BertModel

    config = FAMILIES["bert"].config()
    models = [BertModel._from_config(config, attn_implementation="eager") for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    student, teacher = tritune.prepare(models[0], DEPLOYED), instrument(models[1])
    stages = tritune.reconstruct(student, teacher, batches(2), steps=10, head=FEATURE_EXTRACTION)
    assert [stage.name for stage in stages] == ["embeddings", "block 0", "block 1", "block 2"]


def test_what_cannot_be_reconstructed_is_refused():
    student, teacher, batch = pair("bert")
    float_model = FAMILIES["bert"].build()
    for arguments, message in (
        ((float_model, teacher, [batch]), "must come from tritune.prepare"),
        ((student, teacher, []), "there is no data"),
        ((student, teacher, ["text"]), "texts need a tokenizer"),
        ((tritune.prepare(one_layer("bert").build()), teacher, [batch]), "layer_map must say which"),
    ):
        with pytest.raises(TrituneError, match=message):
            tritune.reconstruct(*arguments)


def test_what_does_not_fit_says_what_to_do():
    swin = instrument(SERVED["Swin"].build())
    with pytest.raises(UnsupportedModelError, match="take a recipe with reconstruct_steps 0, such as ti-g"):
        check_models(swin, swin, None)
    wide = FAMILIES["bert"].config()
    wide.hidden_size *= 2
    other = instrument(type(FAMILIES["bert"].build())._from_config(wide, attn_implementation="eager"))
    with pytest.raises(
        TrituneError, match=f"hidden states are {wide.hidden_size // 2} wide, the teacher's {wide.hidden_size}"
    ):
        check_models(instrument(FAMILIES["bert"].build()), other, None)
