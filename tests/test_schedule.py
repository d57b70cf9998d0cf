"""Schedules step by step against exact fractions, and the split of a budget."""

import random
from fractions import Fraction

import pytest
import torch

from tritune import Site
from tritune.distil.schedule import SCHEDULES, gradual, inverted, split_budget, stochastic, teacher_weight
from tritune.modeling.sites import ATTENTION_SITES

LENGTHS = (1, 2, 3, 5, 6, 7, 60, 120)
steps_of = pytest.mark.parametrize("steps", LENGTHS)


@steps_of
def test_gradual(steps):
    for step in range(steps):
        done = Fraction(step, steps)
        late = Site.CONTEXT if done < Fraction(1, 3) else Site.MAP
        assert gradual(step, steps) is (Site.PROJECTION if done < Fraction(1, 6) else late)


@steps_of
def test_inverted(steps):
    for step in range(steps):
        done = Fraction(step, steps)
        late = Site.CONTEXT if done < Fraction(2, 3) else Site.PROJECTION
        assert inverted(step, steps) is (Site.MAP if done < Fraction(1, 3) else late)


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_stochastic_is_a_function_of_seed_and_step(seed):
    drawn = [stochastic(step, 600, seed) for step in range(600)]
    assert [stochastic(step, 600, seed) for step in reversed(range(600))] == drawn[::-1]
    assert [stochastic(step, 7, seed) for step in range(600)] == drawn
    counts = [drawn.count(site) for site in ATTENTION_SITES]
    # Three standard deviations of a fair draw.
    assert sum(counts) == 600 and all(abs(count - 200) < 3 * (600 * 2 / 9) ** 0.5 for count in counts)
    assert drawn != [stochastic(step, 600, seed + 7) for step in range(600)]


def test_stochastic_draws_as_it_always_did():
    names = {Site.MAP: "m", Site.CONTEXT: "c", Site.PROJECTION: "p"}
    assert "".join(names[stochastic(step, 20, 42)] for step in range(20)) == "cppcmcppmpmccppmppcc"


def test_stochastic_leaves_every_global_generator_alone():
    drawn = []
    for seed in (1, 2):
        random.seed(seed)
        torch.manual_seed(seed)
        before = random.getstate(), torch.get_rng_state()
        drawn.append([stochastic(step, 60, 3) for step in range(60)])
        assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    assert drawn[0] == drawn[1]


def test_every_name_gives_a_site_at_every_step():
    assert set(SCHEDULES) == {"map", "context", "projection", "block", "gradual", "inverted", "stochastic"}
    for steps in LENGTHS:
        for step in range(steps):
            assert all(isinstance(schedule(step, steps, 5), Site) for schedule in SCHEDULES.values())
            for site in Site:
                assert SCHEDULES[site.value](step, steps, 5) is site


@steps_of
def test_the_teachers_share_of_a_block_falls_to_nothing_and_nothing_else_is_shared(steps):
    for step in range(steps):
        assert teacher_weight(Site.BLOCK, step, steps) == pytest.approx(float(1 - Fraction(step, steps)), rel=1e-15)
        assert all(teacher_weight(site, step, steps) == 1 for site in ATTENTION_SITES)
    assert teacher_weight(Site.BLOCK, 0, steps) == 1


@pytest.mark.parametrize(
    ("total", "longest", "split"),
    [
        (1, 60, (1, 0)),
        (2, 60, (1, 1)),
        (3, 60, (1, 2)),
        (4, 60, (1, 3)),
        (7, 60, (1, 6)),
        (8, 60, (2, 6)),
        (115, 60, (28, 87)),
        (239, 60, (59, 180)),
        (240, 60, (60, 180)),
        (241, 60, (60, 181)),
        (36813, 60, (60, 36753)),
        (479, 120, (119, 360)),
        (480, 120, (120, 360)),
        (1605, 120, (120, 1485)),
    ],
)
def test_split_budget(total, longest, split):
    assert split_budget(total, longest) == split


def test_the_two_steps_are_the_whole_budget():
    for total in range(1, 700):
        for longest in (60, 120):
            one, two = split_budget(total, longest)
            assert one + two == total and 1 <= one <= longest and two >= 0
            assert split_budget(total) == split_budget(total, 60)
