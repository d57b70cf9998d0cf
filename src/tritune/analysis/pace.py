"""When a long analysis ends, and what of it fits into the minutes that there are."""

import time
from collections.abc import Callable

from ..progress import clock, duration


def silent(line: str) -> None:
    """Says nothing."""


def seconds_of(work: Callable[[], object]) -> float:
    """How long `work` takes once."""
    before = time.monotonic()
    work()
    return time.monotonic() - before


def expected_end(seconds: float) -> str:
    """`seconds` from now, in words: how long, and at what time of this machine's clock.

    >>> expected_end(90).split(",")[0]
    'about 1 min 30 s'
    """
    return f"about {duration(seconds)}, until {clock(seconds)}"


class Budget:
    """Minutes that a call has.

    Args:
        minutes: None for no bound.
    """

    def __init__(self, minutes: float | None):
        self.seconds = None if minutes is None else 60 * minutes
        self._start = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds that are left; infinite without a bound."""
        return float("inf") if self.seconds is None else self.seconds - (time.monotonic() - self._start)
