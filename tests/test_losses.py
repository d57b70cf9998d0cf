"""Every loss against a slow loop in float64, written from its formula."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from tritune import LayerTrace, ModelTrace, TrituneError
from tritune.distil.layer_map import distilled_layers
from tritune.distil.losses import (
    LOSSES,
    Pair,
    attention_map_kl,
    attention_score_mse,
    binary_kl_divergence,
    binary_soft_cross_entropy,
    distillation_losses,
    kl_divergence,
    soft_cross_entropy,
    token_mse,
    trace_fields,
)

HEADS, WIDTH, CLASSES = 2, 3, 4
LENGTHS = {"ragged": [5, 3, 2], "one_token": [1], "full": [4, 4], "empty_sequence": [4, 0], "nothing_at_all": [0]}
every_batch = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
every_average = pytest.mark.parametrize("average", ["padded", "valid"])


def mask_of(lengths: list[int], tokens: int | None = None) -> torch.Tensor:
    return (torch.arange(tokens or max(*lengths, 1)) < torch.tensor(lengths)[:, None]).long()


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def mean(values) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def token_mse_loop(student, teacher, lengths, average) -> float:
    """One number per vector; vectors of (batch, tokens, width)."""
    per_token = [
        [mean((s - t) ** 2 for s, t in zip(*rows, strict=True)) for rows in zip(*pair, strict=True)]
        for pair in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    if average == "padded":
        return mean(value for sequence in per_token for value in sequence)
    return mean(mean(sequence[:n]) if n else 0.0 for sequence, n in zip(per_token, lengths, strict=True))


def score_mse_loop(student, teacher, lengths, average) -> float:
    per_head = []
    for b, h in itertools.product(range(len(lengths)), range(HEADS)):
        queries, keys = range(student.shape[2]), range(lengths[b])
        if average == "valid":
            queries = range(lengths[b])
        squares = [(student[b, h, q, k] - teacher[b, h, q, k]).item() ** 2 for q in queries for k in keys]
        count = lengths[b] ** 2 if average == "valid" else student.shape[2] * student.shape[3]
        per_head.append(math.fsum(squares) / count if count else 0.0)
    return mean(per_head)


def map_kl_loop(student, teacher, lengths) -> float:
    per_head = []
    for b, h in itertools.product(range(len(lengths)), range(HEADS)):
        total = 0.0
        for q, k in itertools.product(range(lengths[b]), repeat=2):
            p, r = (max(probs[b, h, q, k].item(), 1e-8) for probs in (teacher, student))
            total += p * math.log(p / r)
        per_head.append(total / max(lengths[b], 1))
    return mean(per_head)


def soft_cross_entropy_loop(student, teacher, temperature=1.0) -> float:
    def softmax(row):
        exps = [math.exp(value / temperature) for value in row]
        return [value / math.fsum(exps) for value in exps]

    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    return temperature**2 * mean(
        -math.fsum(p * math.log(q) for p, q in zip(softmax(theirs), softmax(own), strict=True)) for own, theirs in rows
    )


@every_batch
@every_average
def test_token_mse(lengths, average):
    mask = mask_of(lengths)
    student, teacher = randn(*mask.shape, WIDTH), randn(*mask.shape, WIDTH)
    expected = token_mse_loop(student, teacher, lengths, average)
    assert token_mse(student, teacher, mask, average).item() == pytest.approx(expected, rel=1e-12)


@every_batch
@every_average
def test_token_mse_of_contexts_is_the_mean_over_heads(lengths, average):
    mask = mask_of(lengths)
    student, teacher = (randn(len(lengths), HEADS, mask.shape[1], WIDTH) for _ in range(2))
    expected = mean(token_mse_loop(student[:, h], teacher[:, h], lengths, average) for h in range(HEADS))
    assert token_mse(student, teacher, mask, average).item() == pytest.approx(expected, rel=1e-12)


@every_batch
@every_average
@pytest.mark.parametrize("hidden", [-10000.0, torch.finfo(torch.float64).min, -math.inf])
def test_attention_score_mse(lengths, average, hidden):
    mask = mask_of(lengths)
    masked = mask[:, None, None, :] == 0
    student, teacher = (randn(len(lengths), HEADS, mask.shape[1], mask.shape[1]) for _ in range(2))
    student, teacher = (scores.masked_fill(masked, hidden).requires_grad_() for scores in (student, teacher))
    loss = attention_score_mse(student, teacher, masked, mask, average)
    assert loss.item() == pytest.approx(score_mse_loop(student, teacher, lengths, average), rel=1e-12)
    loss.backward()
    assert student.grad.isfinite().all() and not student.grad[masked.expand_as(student)].any()


@every_batch
def test_attention_map_kl(lengths):
    mask = mask_of(lengths)
    masked = mask[:, None, None, :] == 0
    shape = (len(lengths), HEADS, mask.shape[1], mask.shape[1])
    student, teacher = ((8 * randn(*shape)).masked_fill(masked, -1e4).softmax(-1).requires_grad_() for _ in range(2))
    loss = attention_map_kl(student, teacher, mask)
    assert loss.item() == pytest.approx(map_kl_loop(student, teacher, lengths), rel=1e-9, abs=1e-15)
    loss.backward()
    assert student.grad.isfinite().all() and not student.grad[masked.expand_as(student)].any()


def test_attention_map_kl_is_finite_where_probabilities_vanish():
    student, teacher = torch.tensor([[[[0.0, 1.0]]]], dtype=torch.float64), torch.tensor([[[[1.0, 0.0]]]])
    expected = math.log(1 / 1e-8) + 1e-8 * math.log(1e-8 / 1)
    for mask in (None, torch.ones(1, 1)):
        assert attention_map_kl(student, teacher.double(), mask).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_soft_cross_entropy_and_kl_divergence(batch, spread):
    student, teacher = spread * randn(batch, CLASSES), spread * randn(batch, CLASSES)
    cross_entropy = soft_cross_entropy(student, teacher)
    entropy = torch.distributions.Categorical(logits=teacher).entropy().mean()
    assert cross_entropy.item() == pytest.approx(soft_cross_entropy_loop(student, teacher), rel=1e-9)
    torch.testing.assert_close(kl_divergence(student, teacher), cross_entropy - entropy, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_temperature(temperature):
    student, teacher = 3 * randn(5, CLASSES), 3 * randn(5, CLASSES)
    loss = soft_cross_entropy(student, teacher, temperature)
    assert loss.item() == pytest.approx(soft_cross_entropy_loop(student, teacher, temperature), rel=1e-12)
    assert torch.equal(soft_cross_entropy(student, teacher, 1.0), soft_cross_entropy(student, teacher))
    through_the_table = distillation_losses(
        Pair(SimpleNamespace(logits=student), SimpleNamespace(logits=teacher), temperature=temperature), {"logits": 1.0}
    )
    assert torch.equal(through_the_table["logits"], loss)


def test_gradients_keep_their_size_whatever_the_temperature():
    """Hinton et al., eq. 4: at high temperatures the gradient tends to (z_S - z_T) / classes, logits of mean zero."""
    student, teacher = (logits - logits.mean(-1, keepdim=True) for logits in (randn(1, CLASSES), randn(1, CLASSES)))
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(soft_cross_entropy(student, teacher, 1e4), student)
    torch.testing.assert_close(gradient, (student.detach() - teacher) / CLASSES, rtol=1e-3, atol=1e-4)


LAYER_CHOICES = [
    ("all", 4, None),
    ("last", 4, (3,)),
    ("last", 1, (0,)),
    ("every-2", 4, (1, 3)),
    ("every-3", 4, (2,)),
    ("every-12", 24, (11, 23)),
    ((2, 0), 4, (0, 2)),
]


@pytest.mark.parametrize(("choice", "count", "chosen"), LAYER_CHOICES)
def test_distilled_layers(choice, count, chosen):
    assert distilled_layers(choice, count) == chosen


@pytest.mark.parametrize(
    "choice", ["every-5", "every-1", "every-0", "every-", "every-02", "first", "", (), (4,), (-1,), (1, 1)]
)
def test_layers_that_cannot_be_distilled(choice):
    with pytest.raises(TrituneError, match="distil_layers"):
        distilled_layers(choice, 4)


@every_average
@pytest.mark.parametrize("layers", [(0,), (1, 3), (3,), (0, 1, 2, 3)])
def test_only_the_chosen_layers_are_distilled(average, layers):
    """Every loss is that of models which have the chosen layers only, and of hidden states only their outputs."""
    lengths, labels = [5, 2], torch.tensor([0, 1])
    student, teacher, mask = output_of(lengths, 4), output_of(lengths, 4), mask_of(lengths)
    found = distillation_losses(Pair(student, teacher, mask, labels, average, layers=layers), ALL)
    expected_hidden = sum(
        token_mse_loop(student.trace.hidden_states[i + 1], teacher.trace.hidden_states[i + 1], lengths, average)
        for i in layers
    )
    assert found.pop("hidden_states").item() == pytest.approx(expected_hidden, rel=1e-12)
    for output in (student, teacher):
        output.trace.layers = [output.trace.layers[layer] for layer in layers]
    expected = distillation_losses(Pair(student, teacher, mask, labels, average), ALL | {"hidden_states": 0})
    assert found == expected
    whole = distillation_losses(Pair(student, teacher, mask, labels, average, layers=None), ALL)
    assert whole["attention_map"] == expected["attention_map"]


def test_hidden_states_that_belong_to_no_layer_are_refused():
    """As of Swin, which reports one a stage."""
    student, teacher = output_of([3], 4), output_of([3], 4)
    for output in (student, teacher):
        output.trace.hidden_states = output.trace.hidden_states[:3]
    assert distillation_losses(Pair(student, teacher), {"hidden_states": 1.0})
    with pytest.raises(TrituneError, match="3 hidden states for 4 layers"):
        distillation_losses(Pair(student, teacher, layers=(0,)), {"hidden_states": 1.0})


def binary_soft_cross_entropy_loop(student, teacher, temperature=1.0) -> float:
    def sigmoid(logit):
        return 1 / (1 + math.exp(-logit / temperature))

    flat = zip(itertools.chain(*student), itertools.chain(*teacher), strict=True)
    cells = [(sigmoid(s), sigmoid(t)) for s, t in flat]
    return temperature**2 * mean(-(p * math.log(q) + (1 - p) * math.log(1 - q)) for q, p in cells)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("rows", [1, 5])
def test_binary_soft_cross_entropy(rows, temperature):
    student, teacher = randn(rows, CLASSES), randn(rows, CLASSES)
    expected = binary_soft_cross_entropy_loop(student.tolist(), teacher.tolist(), temperature)
    assert binary_soft_cross_entropy(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-12)


def test_binary_kl_divergence_is_the_cross_entropy_minus_the_teachers_entropy():
    student, teacher = randn(4, CLASSES), randn(4, CLASSES)
    difference = binary_soft_cross_entropy(student, teacher) - binary_soft_cross_entropy(teacher, teacher)
    assert binary_kl_divergence(student, teacher).item() == pytest.approx(CLASSES * difference.item(), rel=1e-12)
    assert binary_kl_divergence(teacher, teacher).item() == 0
    certain, contrary = torch.tensor([[1e4, 0.0]]), torch.tensor([[-1e4, 0.0]])
    assert binary_kl_divergence(contrary, certain).item() == pytest.approx(1e4)


def test_losses_of_many_labels():
    """Logits and ground truth are sigmoids' losses; with two labels a row they are not those of classes."""
    student, teacher = output_of([3, 2], 1), output_of([3, 2], 1)
    labels = torch.tensor([[0.0] * CLASSES, [1.0] + [0.0] * (CLASSES - 2) + [1.0]])
    pair = Pair(student, teacher, labels=labels, temperature=2.0, multi_label=True)
    losses = distillation_losses(pair, {"logits": 1.0, "ground_truth": 1.0})
    expected = binary_soft_cross_entropy_loop(student.logits.tolist(), teacher.logits.tolist(), 2.0)
    assert losses["logits"].item() == pytest.approx(expected, rel=1e-12)
    cells = zip(student.logits.flatten().tolist(), labels.flatten().tolist(), strict=True)
    expected = mean(math.log(1 + math.exp(-s if y else s)) for s, y in cells)
    assert losses["ground_truth"].item() == pytest.approx(expected, rel=1e-12)


def test_kl_divergence_is_finite_for_certain_teachers():
    student, teacher = torch.tensor([[0.0, 1e4]]).requires_grad_(), torch.tensor([[1e4, 0.0]])
    for loss in (kl_divergence(student, teacher), soft_cross_entropy(student, teacher)):
        assert loss.item() == pytest.approx(1e4)
        (gradient,) = torch.autograd.grad(loss, student)
        assert gradient.tolist() == [[-1.0, 1.0]]


def output_of(lengths: list[int], layers: int, tokens: int | None = None, classes: int = CLASSES) -> SimpleNamespace:
    batch, tokens = len(lengths), tokens or max(*lengths, 1)
    masked = mask_of(lengths, tokens)[:, None, None, :] == 0

    def layer() -> LayerTrace:
        scores = randn(batch, HEADS, tokens, tokens).masked_fill(masked, -1e4)
        vectors = (randn(batch, tokens, WIDTH) for _ in range(2))
        return LayerTrace(scores, scores.softmax(-1), randn(batch, HEADS, tokens, WIDTH), *vectors, masked)

    states = [randn(batch, tokens, WIDTH) for _ in range(layers + 1)]
    return SimpleNamespace(logits=randn(batch, classes), trace=ModelTrace([layer() for _ in range(layers)], states))


def rows_of(output: SimpleNamespace, rows: slice) -> SimpleNamespace:
    layers = [LayerTrace(**{name: value[rows] for name, value in vars(layer).items()}) for layer in output.trace.layers]
    trace = ModelTrace(layers, [states[rows] for states in output.trace.hidden_states])
    return SimpleNamespace(logits=output.logits[rows], trace=trace)


# Of models that these outputs are not of: tests/test_next_token.py and tests/test_features.py have them.
ELSEWHERE = {"token_scaled_logits", "embedding"}
ALL = {name: 1.0 for name in LOSSES if name not in ELSEWHERE}


@every_batch
@every_average
@pytest.mark.parametrize("layers", [1, 3])
def test_the_table_sums_over_layers(lengths, average, layers):
    student, teacher, mask = output_of(lengths, layers), output_of(lengths, layers), mask_of(lengths)
    labels = torch.arange(len(lengths)) % CLASSES
    losses = distillation_losses(Pair(student, teacher, mask, labels, average), ALL)
    pairs = list(zip(student.trace.layers, teacher.trace.layers, strict=True))
    states = zip(student.trace.hidden_states, teacher.trace.hidden_states, strict=True)

    def per_layer(name: str) -> float:
        return sum(token_mse_loop(getattr(s, name), getattr(t, name), lengths, average) for s, t in pairs)

    expected = {
        "logits": soft_cross_entropy_loop(student.logits, teacher.logits),
        "hidden_states": sum(token_mse_loop(s, t, lengths, average) for s, t in states),
        "attention_scores": sum(
            score_mse_loop(s.attention_scores, t.attention_scores, lengths, average) for s, t in pairs
        ),
        "attention_map": sum(map_kl_loop(s.attention_probs, t.attention_probs, lengths) for s, t in pairs),
        "block_output": per_layer("attention_block_output"),
        "projection": per_layer("attention_projection"),
        "context": sum(
            mean(token_mse_loop(s.context[:, h], t.context[:, h], lengths, average) for h in range(HEADS))
            for s, t in pairs
        ),
        "ground_truth": mean(
            math.log(sum(map(math.exp, row))) - row[label]
            for row, label in zip(student.logits.tolist(), labels.tolist(), strict=True)
        ),
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-9, abs=1e-15)


@every_batch
@every_average
def test_a_perfect_student_has_no_loss_but_the_teachers_entropy(lengths, average):
    teacher = output_of(lengths, 2)
    losses = distillation_losses(Pair(teacher, teacher, mask_of(lengths), None, average), ALL | {"ground_truth": 0})
    entropy = torch.distributions.Categorical(logits=teacher.logits).entropy().mean()
    torch.testing.assert_close(losses.pop("logits"), entropy)
    assert {loss.item() for loss in losses.values()} == {0.0}
    assert kl_divergence(teacher.logits, teacher.logits).item() == pytest.approx(0, abs=1e-12)


@every_average
def test_no_mask_is_a_mask_of_ones(average):
    lengths, labels = [4, 4], torch.tensor([0, 1])
    student, teacher = output_of(lengths, 2), output_of(lengths, 2)
    masked = distillation_losses(Pair(student, teacher, mask_of(lengths), labels, average), ALL)
    for output in (student, teacher):
        for layer in output.trace.layers:
            layer.masked = None
    bare = distillation_losses(Pair(student, teacher, None, labels, average), ALL)
    for name in ALL:
        torch.testing.assert_close(bare[name], masked[name], rtol=1e-12, atol=0)


def test_valid_losses_are_the_mean_over_the_parts_of_a_batch():
    lengths, labels = [5, 1, 3, 2], torch.tensor([0, 1, 2, 3])
    student, teacher, mask = output_of(lengths, 2), output_of(lengths, 2), mask_of(lengths)
    whole = distillation_losses(Pair(student, teacher, mask, labels, "valid"), ALL)
    halves = [
        distillation_losses(
            Pair(rows_of(student, rows), rows_of(teacher, rows), mask[rows], labels[rows], "valid"), ALL
        )
        for rows in (slice(0, 2), slice(2, 4))
    ]
    for name in ALL:
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, whole[name], rtol=1e-12, atol=0)


def test_valid_losses_read_no_padding():
    lengths, labels = [3, 1], torch.tensor([0, 1])
    student, teacher, mask = output_of(lengths, 2, tokens=5), output_of(lengths, 2, tokens=5), mask_of(lengths, 5)
    before = distillation_losses(Pair(student, teacher, mask, labels, "valid"), ALL)
    padding = mask == 0
    for states in (student.trace.hidden_states, *([lay.attention_block_output] for lay in student.trace.layers)):
        for tensor in states:
            tensor[padding] = 1e6
    for layer in student.trace.layers:
        layer.attention_projection[padding] = 1e6
        layer.context.transpose(1, 2)[padding] = 1e6
        layer.attention_scores.transpose(1, 2)[padding] = 1e6
        layer.attention_probs.transpose(1, 2)[padding] = 1.0
    after = distillation_losses(Pair(student, teacher, mask, labels, "valid"), ALL)
    assert {name: loss.item() for name, loss in after.items()} == {name: loss.item() for name, loss in before.items()}


@pytest.mark.parametrize("batch", [1, 3])
def test_regression_compares_scores(batch):
    student, teacher = (output_of([2] * batch, 1, classes=1) for _ in range(2))
    labels = torch.arange(batch).float()
    pair = Pair(student, teacher, labels=labels, regression=True)
    losses = distillation_losses(pair, {"logits": 1.0, "ground_truth": 1.0})
    rows = list(zip(student.logits.tolist(), teacher.logits.tolist(), labels.tolist(), strict=True))
    assert losses["logits"].item() == pytest.approx(mean((s - t) ** 2 for (s,), (t,), _ in rows))
    assert losses["ground_truth"].item() == pytest.approx(mean((s - label) ** 2 for (s,), _, label in rows))


@pytest.mark.parametrize("name", ALL)
def test_a_loss_reads_the_fields_it_names_and_no_other(name):
    lengths = [3, 2]
    outputs = [output_of(lengths, 2), output_of(lengths, 2)]
    labels, mask = torch.tensor([0, 1]), mask_of(lengths)
    expected = distillation_losses(Pair(*outputs, mask, labels), {name: 1.0})
    for output in outputs:
        for layer in output.trace.layers:
            for field in set(vars(layer)) - trace_fields({name: 1.0}) - {"masked"}:
                setattr(layer, field, None)
        if "hidden_states" not in trace_fields({name: 1.0}):
            output.trace.hidden_states = None
    assert distillation_losses(Pair(*outputs, mask, labels), {name: 1.0}) == expected
    assert distillation_losses(Pair(*outputs, mask, labels), {name: 0.0}) == {}


def test_ground_truth_without_labels_says_so():
    output = output_of([3, 2], 1)
    with pytest.raises(TrituneError, match="the loss ground_truth needs labels"):
        distillation_losses(Pair(output, output, mask_of([3, 2])), {"ground_truth": 1.0})
