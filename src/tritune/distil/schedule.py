"""Schedules: pure functions from a step to an intervention's site and weight, and the split of a budget into two steps.

Teacher Intervention (EACL 2023, section 4.3): step one trains with the teacher's tensors plugged in, and TI-G moves the
site backwards through the layer, from the projection to the map, so that ever more of the student carries the signal.
"""

import random
from collections.abc import Callable

from ..errors import TrituneError, check_new_name, shown
from ..modeling.sites import ATTENTION_SITES, Site

Schedule = Callable[[int, int, int], Site]


def gradual(step: int, steps: int, seed: int = 0) -> Site:
    """TI-G: PROJECTION for the first sixth, CONTEXT for the second, MAP for the rest.

    >>> [gradual(step, 6).name for step in range(6)]
    ['PROJECTION', 'CONTEXT', 'MAP', 'MAP', 'MAP', 'MAP']
    """
    if 6 * step < steps:
        return Site.PROJECTION
    return Site.CONTEXT if 3 * step < steps else Site.MAP


def inverted(step: int, steps: int, seed: int = 0) -> Site:
    """The ablation of TI-G that runs it backwards: MAP, CONTEXT, PROJECTION, a third each.

    >>> [inverted(step, 3).name for step in range(3)]
    ['MAP', 'CONTEXT', 'PROJECTION']
    """
    if 3 * step < steps:
        return Site.MAP
    return Site.CONTEXT if 3 * step < 2 * steps else Site.PROJECTION


def stochastic(step: int, steps: int, seed: int = 0) -> Site:
    """One of the three attention sites each step, drawn from (seed, step) alone: a resumed run draws the same ones."""
    return random.Random(f"{seed}/{step}").choice(ATTENTION_SITES)


def _constant(site: Site) -> Schedule:
    def constant(step: int, steps: int, seed: int = 0) -> Site:
        return site

    return constant


SCHEDULES: dict[str, Schedule] = {
    **{site.value: _constant(site) for site in Site},
    "gradual": gradual,
    "inverted": inverted,
    "stochastic": stochastic,
}


_SHIPPED = tuple(SCHEDULES)


def teacher_weight(site: Site, step: int, steps: int) -> float:
    """The teacher's share at a site: 1, save for BLOCK, where it falls linearly to 0 (MREM, arXiv 2109.15082).

    >>> [teacher_weight(Site.BLOCK, step, 4) for step in range(4)], teacher_weight(Site.MAP, 3, 4)
    ([1.0, 0.75, 0.5, 0.25], 1.0)

    Args:
        site: that a schedule gives for this step.
        step: of step one, counted from 0.
        steps: how many there are.
    """
    return 1 - step / steps if site is Site.BLOCK else 1.0


def register_schedule(name: str, *, exist_ok: bool = False) -> Callable[[Schedule], Schedule]:
    """Decorator: a schedule of one's own under a name, for `schedule` in a recipe.

    It is a pure function of (step, steps, seed): the update of step one that comes next, counted from 0, how many there
    are, and the run's seed. It returns the `Site` of the intervention; `teacher_weight` gives the share.

    Args:
        name: letters, digits and underscores; of none that ships.
        exist_ok: replace one registered before.

    Raises:
        TrituneError: the name is taken, or what is registered cannot be called.
    """

    def register(schedule: Schedule) -> Schedule:
        check_new_name("register_schedule", name, _SHIPPED if exist_ok else SCHEDULES)
        if not callable(schedule):
            raise TrituneError(f"register_schedule: {name} must be a function; got {shown(schedule)}")
        SCHEDULES[name] = schedule
        return schedule

    return register


def split_budget(total: int, longest: int = 60) -> tuple[int, int]:
    """Total steps to (step one, step two): step one is a quarter of them, at least 1 and at most `longest`.

    `longest` is 60, or 120 for CoLA and for four-layer students (EACL 2023, appendix).

    >>> split_budget(115), split_budget(1000), split_budget(2)
    ((28, 87), (60, 940), (1, 1))

    Raises:
        ValueError: there is no step to split.
    """
    if total < 1:
        raise ValueError(f"a budget of {total} steps cannot be split")
    step_one = max(1, min(longest, total // 4))
    return step_one, total - step_one
