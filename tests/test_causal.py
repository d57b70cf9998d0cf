"""Decoders: grouped queries, tied embeddings, token-scaled logits, and no token that knows of a later one."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

import tritune
from bounds import rounding
from tritune import DistillationTrainer, Intervention, Quantization, Site, TrituneError, UnsupportedModelError
from tritune.compute import products
from tritune.deploy.export.integer import with_integer_arithmetic
from tritune.modeling.instrument import instrument_of
from tritune.quant import Granularity, MinMax, Uniform
from zoo import PER_TOKEN, SERVED, VOCABULARY

LLAMA = SERVED["Llama"]
TOKENS = 6


def ids(seed: int = 4) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(seed))


def states(output) -> torch.Tensor:
    return output["logits"] if "logits" in output else output["last_hidden_state"]


def uniform(granularity: Granularity) -> Uniform:
    return Uniform(8, granularity)


LEAKS = [(SERVED[name], torch.float32) for name in ("Llama", "CLIP text", "Mistral", "Phi-3")]
LEAKS += [(LLAMA, dtype) for dtype in (torch.float64, torch.bfloat16)]


@pytest.mark.parametrize(("family", "dtype"), LEAKS, ids=[f"{family.name}-{dtype}" for family, dtype in LEAKS])
@pytest.mark.parametrize("site", [None, *Site])
@torch.no_grad()
def test_no_token_knows_of_a_later_one(family, site, dtype):
    """Loud later tokens too: their scales are what would give them away."""
    student = tritune.prepare(family.build(), PER_TOKEN).to(dtype)
    teacher = tritune.instrument(family.build(seed=1)).to(dtype)

    def answers(tokens: torch.Tensor) -> torch.Tensor:
        intervention = site and Intervention(site, teacher(input_ids=tokens, output_trace=[site.field]).trace)
        return states(student(input_ids=tokens, intervention=intervention))

    words = student.get_input_embeddings().weight
    words[5:10] *= 4
    teacher.get_input_embeddings().weight[5:10] *= 4
    tokens = ids() % 5 + 15
    before = answers(tokens)
    for first in range(1, TOKENS):
        changed = tokens.clone()
        changed[:, first:] = 5 + torch.arange(TOKENS - first) % 5
        after = answers(changed)
        assert torch.equal(after[:, :first], before[:, :first]), first
        assert not torch.equal(after[:, first:], before[:, first:])


@torch.no_grad()
def test_the_scale_of_a_whole_sequence_would_give_it_away():
    """The test above can fail: with V's scale per sequence and head, as encoders have it, it does."""
    student = tritune.prepare(LLAMA.build(), PER_TOKEN)
    for state in instrument_of(student).states:
        assert state.value.granularity is Granularity.TOKEN
        state.value = uniform(Granularity.HEAD)
    tokens, changed = ids(), ids()
    changed[:, -1] = (changed[:, -1] + 1) % VOCABULARY
    answers = [student(input_ids=t).logits[:, :-1] for t in (tokens, changed)]
    assert not torch.equal(*answers)


@pytest.mark.parametrize(
    "quantization", [Quantization(), Quantization(activation_bits=8, modules={"*": {"activation_clip": 3.0}})]
)
def test_scales_over_tokens_are_refused(quantization):
    model = LLAMA.build()
    with pytest.raises(
        TrituneError, match=r"activation_granularity: tensor lets .* see later tokens .* set it to token"
    ):
        tritune.prepare(model, quantization)
    assert not any("Quant" in type(module).__name__ for module in model.modules())


def test_a_module_may_not_share_scales_either():
    pattern = {"*.layers.1.mlp.up_proj": {"activation_granularity": "tensor"}}
    message = r"lets model\.layers\.1\.mlp\.up_proj of this causal model see later tokens"
    with pytest.raises(TrituneError, match=message):
        tritune.prepare(LLAMA.build(), Quantization(activation_granularity="token", modules=pattern))
    tritune.prepare(LLAMA.build(), Quantization(activation_bits=None))  # weights alone have no scales over tokens


def test_folded_scales_are_those_of_a_slow_loop():
    """context = q(probs * scale of V) @ codes of V, with one scale per row for the first."""
    generator = torch.Generator().manual_seed(1)
    probs = torch.randn(2, 3, 4, 4, generator=generator).softmax(-1)
    value = torch.randn(2, 3, 4, 5, generator=generator) * torch.tensor([0.1, 1.0, 5.0, 0.0])[:, None]
    found = products.context(probs, value, uniform(Granularity.TOKEN), uniform(Granularity.TOKEN))
    exact = products.context(probs.double(), value.double(), uniform(Granularity.TOKEN), uniform(Granularity.TOKEN))
    for b in range(2):
        for h in range(3):
            scales = [max(min(max(map(abs, row)), 2.5), 1e-12) / 127 for row in value[b, h].double().tolist()]
            codes = [
                [max(-127, min(127, round(v / s))) for v in row]
                for s, row in zip(scales, value[b, h].double().tolist(), strict=True)
            ]
            for q in range(4):
                folded = [p * s for p, s in zip(probs[b, h, q].double().tolist(), scales, strict=True)]
                unit = max(folded) / 127
                for d in range(5):
                    wanted = unit * sum(round(f / unit) * row[d] for f, row in zip(folded, codes, strict=True))
                    assert exact[b, h, q, d].item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
                    assert found[b, h, q, d].item() == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_gradients_of_folded_scales_are_straight_through():
    """As if context were probs @ V of the quantized values, inside the clip."""
    probs = torch.randn(1, 2, 4, 4, dtype=torch.float64).softmax(-1).requires_grad_()
    value = (torch.randn(1, 2, 4, 3, dtype=torch.float64) * 0.5).requires_grad_()
    direction = torch.randn(1, 2, 4, 3, dtype=torch.float64)
    (
        products.context(probs, value, uniform(Granularity.TOKEN), uniform(Granularity.TOKEN)) * direction
    ).sum().backward()
    quantized = uniform(Granularity.TOKEN)(value.detach())
    torch.testing.assert_close(probs.grad, direction @ quantized.mT)
    torch.testing.assert_close(value.grad, probs.detach().mT @ direction, rtol=0.02, atol=0.02)


def test_values_with_an_offset_keep_their_own_scales():
    value, probs = torch.randn(1, 2, 4, 3), torch.randn(1, 2, 4, 4).softmax(-1)
    quantizer = MinMax(8, Granularity.TOKEN)
    found = products.context(probs, value, None, quantizer)
    torch.testing.assert_close(found, probs @ quantizer(value))


@torch.no_grad()
def test_grouped_queries_are_repeated_heads():
    """Against a model whose K and V are copied to every head; copied in another order it is another model."""
    model = LLAMA.build().double()
    float_only = Quantization(weight_bits=None, embedding_bits=None, activation_bits=None)

    def traced(model):
        output = tritune.prepare(model, float_only)(input_ids=ids(), output_trace=True)
        return [output.logits, *(t for layer in output.trace.layers for t in (layer.attention_probs, layer.context))]

    def wide(in_turn: bool):
        copied = LlamaForCausalLM(LlamaConfig(**LLAMA.values | {"num_key_value_heads": 4})).eval().double()
        weights = model.state_dict()
        for name in weights:
            if "k_proj" in name or "v_proj" in name:
                heads = weights[name].view(2, 4, -1)
                order = [0, 1, 0, 1] if in_turn else [0, 0, 1, 1]
                weights[name] = heads[order].reshape(16, -1)
        copied.load_state_dict(weights)
        return traced(copied)

    expected, mutant = wide(in_turn=False), wide(in_turn=True)
    for own, other, wrong in zip(traced(model), expected, mutant, strict=True):
        bound = rounding(other.dtype, 1000, other.abs().max().item())  # far more terms than lie on the way to a logit
        torch.testing.assert_close(own, other, rtol=0, atol=bound)
        assert (own - wrong).abs().max() > 1e6 * bound


@torch.no_grad()
def test_integer_operators_fold_too():
    student = tritune.prepare(LLAMA.build(), PER_TOKEN)
    expected = student(input_ids=ids()).logits
    found = with_integer_arithmetic(student)(input_ids=ids()).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_cached_keys_and_values_give_the_same_answers():
    student = tritune.prepare(LLAMA.build(), PER_TOKEN)
    whole = student(input_ids=ids()).logits
    past = student(input_ids=ids()[:, :-1], use_cache=True).past_key_values
    last = student(input_ids=ids()[:, -1:], past_key_values=past, use_cache=True).logits
    torch.testing.assert_close(last[:, 0], whole[:, -1])


def train(student, teacher, folder, **values) -> list[dict]:
    arguments = TrainingArguments(
        str(folder), max_steps=8, per_device_train_batch_size=2, learning_rate=2e-3, logging_steps=1,
        save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    mask = torch.ones(TOKENS, dtype=torch.long)
    rows = [{"input_ids": row, "attention_mask": mask, "labels": row} for row in ids()]
    trainer = DistillationTrainer(student, teacher, arguments, train_dataset=rows, **values)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_token_scaled_distillation_brings_a_student_nearer_to_its_teacher(tmp_path):
    teacher = LLAMA.build()
    student = tritune.prepare(copy.deepcopy(teacher), PER_TOKEN)
    coefficients = {"token_scaled_logits": 1.0, "ground_truth": 0.1}
    entries = train(student, teacher, tmp_path, coefficients=coefficients, schedule="gradual")
    entries += train(student, teacher, tmp_path, coefficients=coefficients)
    found = [entry["token_scaled_logits_loss"] for entry in entries[8:]]
    assert found[-1] < found[0] and all(0 < entry["ground_truth_loss"] < 100 for entry in entries)


def test_a_classifier_of_sequences_has_no_next_token(tmp_path):
    teacher = LLAMA.build(index=1)
    student = tritune.prepare(copy.deepcopy(teacher), PER_TOKEN)
    with pytest.raises(TrituneError, match="only for a causal language model"):
        train(student, teacher, tmp_path, coefficients={"token_scaled_logits": 1.0})


@torch.no_grad()
def test_tied_embeddings(tmp_path):
    """The table is also the classifier, which stays float: it can be trained quantized, and packed only as float."""

    def build() -> LlamaForCausalLM:
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**LLAMA.values | {"tie_word_embeddings": True})).eval()

    student = tritune.prepare(build(), PER_TOKEN)
    assert student.lm_head.weight is student.model.embed_tokens.weight
    expected = student(input_ids=ids()).logits
    student.save_pretrained(tmp_path / "qat")
    assert torch.equal(LlamaForCausalLM.from_pretrained(tmp_path / "qat")(input_ids=ids()).logits, expected)
    with pytest.raises(TrituneError, match=r"embed_tokens shares its weight with lm_head, which stays float"):
        tritune.convert(student)
    for parts in ({"embeddings": False}, {"classifier": True}, {"classifier": True, "embedding_granularity": "tensor"}):
        student = tritune.prepare(build(), Quantization(activation_granularity="token", **parts))
        expected = student(input_ids=ids()).logits
        tritune.convert(student).save_pretrained(tmp_path / "packed")
        assert torch.equal(LlamaForCausalLM.from_pretrained(tmp_path / "packed")(input_ids=ids()).logits, expected)


def test_a_mask_that_hides_later_tokens_in_silence_is_refused():
    model = LLAMA.build()
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(UnsupportedModelError, match="masks later tokens but does not declare itself causal"):
        tritune.prepare(model, PER_TOKEN)
