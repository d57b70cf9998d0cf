"""`BertAdam` against a scalar loop over plain Python floats."""

import copy
import math

import pytest
import torch

from tritune.training.optimizer import BertAdam, learning_rate

LR, STEPS, FIRST, SECOND, EPS = 3e-2, 8, 0.9, 0.999, 1e-6


def rate(updates: int, warmup: float) -> float:
    done = updates / STEPS
    if done < warmup:
        return LR * done / warmup
    return LR * (1 - done) / (1 - warmup)


def loop(
    start: list[float], gradients: list[list[float] | None], warmup=0.1, decay=0.01, clip=1.0
) -> list[list[float]]:
    """The parameter after every step."""
    values, first, second = list(start), [0.0] * len(start), [0.0] * len(start)
    updates, history = 0, []
    for gradient in gradients:
        if gradient is not None:
            norm = math.sqrt(math.fsum(g * g for g in gradient))
            shrink = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
            for i, g in enumerate(gradient):
                first[i] = FIRST * first[i] + (1 - FIRST) * g * shrink
                second[i] = SECOND * second[i] + (1 - SECOND) * (g * shrink) ** 2
                step = first[i] / (math.sqrt(second[i]) + EPS) + decay * values[i]
                values[i] -= rate(updates, warmup) * step
            updates += 1
        history.append(list(values))
    return history


def randn(*shape: int) -> list:
    return torch.randn(shape, dtype=torch.float64).tolist()


def run(optimizer, parameters, gradients) -> list[list[list[float]]]:
    """Every parameter after every step; `gradients` are per parameter, per step."""
    history = []
    for step in zip(*gradients, strict=True):
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = None if gradient is None else torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        history.append([parameter.tolist() for parameter in parameters])
    return history


def parameters_of(starts: list[list[float]]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor(start, dtype=torch.float64)) for start in starts]


GRADIENTS = {
    "small": [[0.01, -0.02, 0.0]] * STEPS,
    "far above the clip": [[100.0, -3.0, 0.5]] * STEPS,
    "zero": [[0.0, 0.0, 0.0]] * STEPS,
    "late": [None, None, None, *[[0.3, -0.2, 0.9]] * (STEPS - 3)],
    "now and then": [[0.3, -0.2, 0.9], None, [1.0, 1.0, -1.0], None, None, [0.1, 0.0, 0.0], None, [0.0, 2.0, 0.0]],
    "never": [None] * STEPS,
}


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("decay", "clip"), [(0.01, 1.0), (0.0, 1.0), (0.5, 0.0), (0.01, 0.1)])
def test_every_parameter_follows_the_loop_by_itself(warmup, decay, clip):
    gradients = [*GRADIENTS.values(), randn(STEPS, 3)]
    starts = randn(len(gradients), 3)
    parameters = parameters_of(starts)
    optimizer = BertAdam(
        parameters, lr=LR, total_steps=STEPS, warmup=warmup, eps=EPS, weight_decay=decay, max_grad_norm=clip
    )
    history = run(optimizer, parameters, gradients)
    for i, (start, own) in enumerate(zip(starts, gradients, strict=True)):
        for step, expected in enumerate(loop(start, own, warmup, decay, clip)):
            assert history[step][i] == pytest.approx(expected, rel=1e-12, abs=1e-15), (i, step)


def test_a_parameter_without_gradient_keeps_value_and_has_no_state():
    (start,) = starts = randn(1, 3)
    (parameter,) = parameters = parameters_of(starts)
    optimizer = BertAdam(parameters, lr=LR, total_steps=STEPS)
    run(optimizer, parameters, [GRADIENTS["never"]])
    assert parameter.tolist() == start and not optimizer.state[parameter]


def test_a_zero_gradient_still_counts_and_decays():
    (parameter,) = parameters = parameters_of([[1.0, -2.0]])
    optimizer = BertAdam(parameters, lr=LR, total_steps=STEPS, warmup=0.0, weight_decay=0.5)
    run(optimizer, parameters, [[[0.0, 0.0]]])
    assert parameter.tolist() == pytest.approx([1 - LR * 0.5, -2 + LR * 0.5 * 2])
    assert optimizer.state[parameter]["step"] == 1


def test_groups_have_their_own_decay():
    starts, gradients = randn(2, 3), [randn(STEPS, 3), randn(STEPS, 3)]
    parameters = parameters_of(starts)
    groups = [{"params": parameters[:1], "weight_decay": 0.3}, {"params": parameters[1:], "weight_decay": 0.0}]
    history = run(BertAdam(groups, lr=LR, total_steps=STEPS), parameters, gradients)
    for i, decay in enumerate((0.3, 0.0)):
        assert history[-1][i] == pytest.approx(loop(starts[i], gradients[i], decay=decay)[-1], rel=1e-12)


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_reloaded_state_continues_to_the_same_bits(stop):
    starts = randn(len(GRADIENTS), 3)
    gradients = list(GRADIENTS.values())
    parameters = parameters_of(starts)
    optimizer = BertAdam(parameters, lr=LR, total_steps=STEPS)
    run(optimizer, parameters, [own[:stop] for own in gradients])
    twins = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    twin = BertAdam(twins, lr=1.0, total_steps=1)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    rest = [own[stop:] for own in gradients]
    assert run(twin, twins, rest) == run(optimizer, parameters, rest)


def test_the_gradient_itself_is_not_touched():
    (parameter,) = parameters = parameters_of([[1.0, 1.0]])
    run(BertAdam(parameters, total_steps=STEPS), parameters, [[[30.0, 40.0]]])
    assert parameter.grad.tolist() == [30.0, 40.0]


def test_the_closure_runs_with_gradients_and_its_loss_comes_back():
    (parameter,) = parameters = parameters_of([[2.0]])
    optimizer = BertAdam(parameters, lr=LR, total_steps=STEPS, warmup=0.0, weight_decay=0.0)

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4
    # Without bias correction the first update is (1 - 0.9) / sqrt(1 - 0.999), and the gradient's size hardly matters.
    assert parameter.item() == pytest.approx(2 - LR * 0.1 / math.sqrt(0.001), rel=1e-4)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25, 0.9])
def test_learning_rate(warmup):
    rates = [learning_rate(LR, step, STEPS, warmup) for step in range(STEPS)]
    assert rates == pytest.approx([rate(step, warmup) for step in range(STEPS)], rel=1e-12)
    assert max(rates) <= LR and min(rates) >= 0
    assert [learning_rate(LR, step, STEPS, warmup) for step in (STEPS, STEPS + 1, 10 * STEPS)] == [0, 0, 0]


@pytest.mark.parametrize(
    "values", [{"total_steps": 0}, {"total_steps": 5, "warmup": 1.0}, {"total_steps": 5, "warmup": -0.1}]
)
def test_impossible_schedules_are_refused(values):
    with pytest.raises(ValueError, match=r"total_steps|warmup"):
        BertAdam(parameters_of([[1.0]]), **values)
