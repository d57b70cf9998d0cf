"""The losses of tokens and of positions against slow loops in float64, and what they must not depend on."""

import math

import pytest
import torch
from transformers.modeling_outputs import ModelOutput

from tritune.distil.losses import LOSSES, Pair

CLASSES = 3
LENGTHS = {"ragged": [5, 3, 2], "one_token": [1], "full": [4, 4], "empty_sequence": [4, 0], "nothing_at_all": [0]}
every_batch = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
every_average = pytest.mark.parametrize("average", ["padded", "valid"])


def mask_of(lengths, tokens=None):
    return (torch.arange(tokens or max(*lengths, 1)) < torch.tensor(lengths)[:, None]).long()


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


def softmax(row):
    top = max(row)
    exps = [math.exp(value - top) for value in row]
    return [value / math.fsum(exps) for value in exps]


def cross_entropy(student, teacher, temperature=1.0):
    student, teacher = ([value / temperature for value in row] for row in (student, teacher))
    return -(temperature**2) * math.fsum(
        p * math.log(q) for p, q in zip(softmax(teacher), softmax(student), strict=True)
    )


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values) if values else 0.0


def classes(logits):
    return ModelOutput(logits=logits)


def positions(start, end):
    return ModelOutput(start_logits=start, end_logits=end)


@every_batch
@every_average
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_logits_of_tokens(lengths, average, temperature):
    mask = mask_of(lengths)
    student, teacher = (randn(*mask.shape, CLASSES) for _ in range(2))
    values = [
        [cross_entropy(*pair, temperature) for pair in zip(*rows, strict=True)]
        for rows in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    if average == "padded":
        expected = mean(value for row in values for value in row)
    else:
        expected = mean(mean(row[:n]) for row, n in zip(values, lengths, strict=True))
    pair = Pair(classes(student), classes(teacher), mask, average=average, temperature=temperature)
    assert LOSSES["logits"].compute(pair).item() == pytest.approx(expected, rel=1e-12)


@every_batch
@every_average
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_logits_of_positions_leave_padding_out(lengths, average, temperature):
    mask = mask_of(lengths)
    student, teacher = ([randn(*mask.shape).requires_grad_() for _ in range(2)] for _ in range(2))
    per_row = [
        mean(
            cross_entropy(s[row, :n].tolist(), t[row, :n].tolist(), temperature) if n else 0.0
            for s, t in zip(student, teacher, strict=True)
        )
        for row, n in enumerate(lengths)
    ]
    pair = Pair(positions(*student), positions(*teacher), mask, average=average, temperature=temperature)
    loss = LOSSES["logits"].compute(pair)
    assert loss.item() == pytest.approx(mean(per_row), rel=1e-12)
    loss.backward()
    for logits in student:
        assert logits.grad.isfinite().all() and not logits.grad[mask == 0].any()


LABELS = torch.tensor([[0, 2, -100, 1], [-100, 1, -100, -100], [-100] * 4, [-1, 2, 2, -100]])


@every_average
def test_ground_truth_of_tokens(average):
    logits = randn(*LABELS.shape, CLASSES)
    values = [
        [-math.log(softmax(logits[row, token].tolist())[label]) for token, label in enumerate(labels) if label >= 0]
        for row, labels in enumerate(LABELS.tolist())
    ]
    expected = mean(value for row in values for value in row) if average == "padded" else mean(map(mean, values))
    pair = Pair(classes(logits), None, torch.ones(LABELS.shape), LABELS, average=average)
    assert LOSSES["ground_truth"].compute(pair).item() == pytest.approx(expected, rel=1e-12)


@every_average
def test_ground_truth_of_positions(average):
    lengths, labels = [5, 3, 4], torch.tensor([[0, 4], [2, 7], [5, -1]])  # 7 and 5 lie beyond, -1 is none
    mask = mask_of(lengths)
    logits = [randn(*mask.shape) for _ in range(2)]
    values = [
        [
            -math.log(softmax(of[row, :n].tolist())[label])
            for of, label in zip(logits, labels[row].tolist(), strict=True)
            if 0 <= label < mask.shape[1]
        ]
        for row, n in enumerate(lengths)
    ]
    expected = mean(value for row in values for value in row) if average == "padded" else mean(map(mean, values))
    pair = Pair(positions(*logits), None, mask, labels, average=average)
    assert LOSSES["ground_truth"].compute(pair).item() == pytest.approx(expected, rel=1e-12)


def test_nothing_labelled_is_zero_and_finite():
    logits = randn(2, 4, CLASSES).requires_grad_()
    for average in ("padded", "valid"):
        pair = Pair(classes(logits), None, None, torch.full((2, 4), -100), average=average)
        loss = LOSSES["ground_truth"].compute(pair)
        loss.backward()
        assert loss == 0 and not logits.grad.any()


@pytest.mark.parametrize("loss", ["logits", "ground_truth"])
@pytest.mark.parametrize("kind", ["tokens", "positions"])
def test_valid_does_not_depend_on_padding_or_on_the_split_of_a_batch(loss, kind):
    lengths = [5, 3, 2, 4]
    shape = (4, 5, CLASSES) if kind == "tokens" else (4, 5)
    outputs = [[randn(*shape) for _ in range(1 if kind == "tokens" else 2)] for _ in range(2)]
    labels = torch.tensor([[0, 4], [1, 2], [0, 0], [-100, 3]])
    if kind == "tokens":
        labels = torch.randint(0, CLASSES, (4, 5)).masked_fill(mask_of(lengths) == 0, -100)

    def value(rows, more):
        """The loss of these rows with `more` columns of padding full of nonsense."""
        make = classes if kind == "tokens" else positions
        wide = [[torch.cat([of, 9 * randn(4, more, *of.shape[2:])], 1)[rows] for of in one] for one in outputs]
        padded = torch.cat([labels, labels.new_full((4, more), -100)], 1) if kind == "tokens" else labels
        pair = Pair(make(*wide[0]), make(*wide[1]), mask_of(lengths, 5 + more)[rows], padded[rows], average="valid")
        return LOSSES[loss].compute(pair).item()

    whole = value(slice(0, 4), 0)
    assert value(slice(0, 4), 3) == pytest.approx(whole, rel=1e-12)
    assert (value(slice(0, 2), 1) + value(slice(2, 4), 0)) / 2 == pytest.approx(whole, rel=1e-12)
