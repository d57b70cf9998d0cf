"""Losses of language models against slow loops in float64, written from their formulas."""

import math
from types import SimpleNamespace

import pytest
import torch

from tritune import TrituneError
from tritune.distil.losses import (
    IGNORED,
    Pair,
    distillation_losses,
    next_token_cross_entropy,
    soft_cross_entropy,
    token_scaled_soft_cross_entropy,
)

VOCABULARY = 5
CASES = {
    "full": ([4, 4], ()),
    "padded": ([5, 3, 2], ()),
    "one_token": ([1], ()),
    "a_sequence_without_answers": ([4, 1, 0], ()),
    "labels_missing": ([5, 4], ((0, 2), (1, 1), (1, 3))),
}
every_case = pytest.mark.parametrize(("lengths", "missing"), CASES.values(), ids=CASES)


def batch_of(lengths, missing):
    tokens = max(lengths)
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, len(lengths), tokens, VOCABULARY, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, VOCABULARY, (len(lengths), tokens), generator=generator)
    for place in missing:
        labels[place] = IGNORED
    mask = (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()
    return student, teacher, labels, mask


def log_probs(logits: list[float]) -> list[float]:
    total = math.log(math.fsum(map(math.exp, logits)))
    return [value - total for value in logits]


def answered(labels, mask) -> list[list[int]]:
    """Of every sequence the tokens whose next one is real and has a label."""
    return [
        [t for t in range(len(row) - 1) if real[t + 1] and row[t + 1] != IGNORED]
        for row, real in zip(labels.tolist(), mask.tolist(), strict=True)
    ]


@every_case
@pytest.mark.parametrize("temperature", [10.0, 0.5])
def test_token_scaled_soft_cross_entropy(lengths, missing, temperature):
    student, teacher, labels, mask = batch_of(lengths, missing)
    losses = []
    for b, places in enumerate(answered(labels, mask)):
        weights = [math.exp(-log_probs(teacher[b, t].tolist())[labels[b, t + 1].item()] / temperature) for t in places]
        terms = [
            -math.fsum(
                math.exp(p) * q
                for p, q in zip(log_probs(teacher[b, t].tolist()), log_probs(student[b, t].tolist()), strict=True)
            )
            for t in places
        ]
        losses.append(math.fsum(w * x for w, x in zip(weights, terms, strict=True)) / (math.fsum(weights) or 1))
    found = token_scaled_soft_cross_entropy(student, teacher, labels, mask, temperature)
    assert found.item() == pytest.approx(math.fsum(losses) / len(losses), rel=1e-12)


@every_case
def test_next_token_cross_entropy(lengths, missing):
    student, _, labels, mask = batch_of(lengths, missing)
    terms = [
        -log_probs(student[b, t].tolist())[labels[b, t + 1].item()]
        for b, places in enumerate(answered(labels, mask))
        for t in places
    ]
    expected = math.fsum(terms) / max(len(terms), 1)
    assert next_token_cross_entropy(student, labels, mask).item() == pytest.approx(expected, rel=1e-12)


@every_case
def test_nothing_without_an_answer_has_a_gradient_and_all_of_it_is_finite(lengths, missing):
    student, teacher, labels, mask = batch_of(lengths, missing)
    places = answered(labels, mask)
    for loss in (
        lambda logits: token_scaled_soft_cross_entropy(logits, teacher, labels, mask),
        lambda logits: next_token_cross_entropy(logits, labels, mask),
    ):
        logits = student.clone().requires_grad_()
        loss(logits).backward()
        assert logits.grad.isfinite().all()
        touched = logits.grad.abs().sum(-1) > 0
        assert [[t for t, hit in enumerate(row) if hit] for row in touched.tolist()] == places


def test_very_warm_scales_are_all_alike():
    """Then the loss is plain logit distillation, a mean over the tokens."""
    student, teacher, labels, mask = batch_of([5, 5], ())
    plain = soft_cross_entropy(student[:, :-1].flatten(0, 1), teacher[:, :-1].flatten(0, 1))
    torch.testing.assert_close(token_scaled_soft_cross_entropy(student, teacher, labels, mask, 1e9), plain)
    assert token_scaled_soft_cross_entropy(student, teacher, labels, mask).item() != pytest.approx(plain.item())


def test_halves_of_a_batch():
    student, teacher, labels, mask = batch_of([5, 3, 2, 4], ())
    halves = [
        token_scaled_soft_cross_entropy(student[part], teacher[part], labels[part], mask[part])
        for part in (slice(0, 2), slice(2, 4))
    ]
    whole = token_scaled_soft_cross_entropy(student, teacher, labels, mask)
    torch.testing.assert_close(sum(halves) / 2, whole)


def test_in_the_table():
    student, teacher, labels, mask = batch_of([5, 3], ())
    pair = Pair(SimpleNamespace(logits=student), SimpleNamespace(logits=teacher), mask, labels, causal=True)
    losses = distillation_losses(pair, {"token_scaled_logits": 1.0, "ground_truth": 1.0})
    assert losses["token_scaled_logits"] == token_scaled_soft_cross_entropy(student, teacher, labels, mask)
    assert losses["ground_truth"] == next_token_cross_entropy(student, labels, mask)


@pytest.mark.parametrize("causal", [True, False])
def test_refused_where_there_is_no_next_token(causal):
    student, teacher, labels, mask = batch_of([5, 3], ())
    outputs = SimpleNamespace(logits=student), SimpleNamespace(logits=teacher)
    with pytest.raises(TrituneError, match="token_scaled_logits: only for a causal language model"):
        distillation_losses(
            Pair(*outputs, mask, None if causal else labels, causal=causal), {"token_scaled_logits": 1.0}
        )
