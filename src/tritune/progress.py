"""What long work tells of itself: its stages, how far they are, when they will end and what came out.

    with stage("fine-tuning", total=300) as shown:
        ...
        shown.advance(loss=0.31)

    for batch in tracked(loader, "evaluate", len(loader), "batches"):
        ...

Who listens decides how it looks. By default each stage is a few plain lines on stderr (`Lines`), which read the same in
a notebook and in a log file; the command line has a live line for terminals and JSON besides (`cli.live`). Nothing is
nested: within a stage, others are not told.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

Item = TypeVar("Item")
# Told something, in one line.
Say = Callable[[str], None]

# A log gets a line once so many seconds and this share of the stage have passed, or after a long time in any case.
_FIRST, _SECONDS, _SHARE, _LONG = 10, 30, 0.1, 600


class Stage:
    """One stage of some work, made by `stage`.

    Attributes:
        title: what it does.
        total: its steps; None if nobody knows. It may be corrected while the stage runs.
        unit: what its steps are, in the plural.
        done: steps so far, `before` of them by an earlier process.
        scores: the newest numbers, by name.
        shown_at, shown_done: seconds and steps when a listener last showed it; for listeners that do so now and then.
    """

    def __init__(self, listener: "Listener", title: str, total: int | None, unit: str, before: int, delay: float):
        self.title, self.total, self.unit, self.before, self.done = title, total, unit, before, before
        self.scores: dict[str, Any] = {}
        self.shown_at, self.shown_done = 0.0, before
        self._listener, self._delay, self._began, self._is_told = listener, delay, time.monotonic(), False

    def advance(self, steps: int = 1, **scores: Any) -> None:
        """Tell that `steps` more are done, and what came out of them."""
        self.done += steps
        self._tell(scores)

    def note(self, **scores: Any) -> None:
        """Tell new numbers, or words, that the stage is shown with."""
        self._tell(scores)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    @property
    def remaining(self) -> float | None:
        """The seconds that it will take from now on at the pace so far; None if that is not known."""
        steps = self.done - self.before
        return None if self.total is None or steps <= 0 else self.seconds / steps * max(0, self.total - self.done)

    def _tell(self, scores: dict[str, Any]) -> None:
        is_news = any(self.scores.get(name) != value for name, value in scores.items())
        self.scores |= scores
        if self._begin():
            self._listener.advanced(self, is_news)

    def _begin(self) -> bool:
        """Whether it has been told that the stage began; a short one is not worth it."""
        if not self._is_told and self.seconds >= self._delay:
            self._is_told = True
            self._listener.begun(self)
        return self._is_told

    def _end(self, *, whole: bool) -> None:
        if self._is_told:
            self._listener.ended(self, whole)


class Listener:
    """Is told of stages and messages; this one keeps them to itself."""

    def begun(self, stage: Stage) -> None:
        """A stage began."""

    def advanced(self, stage: Stage, is_news: bool) -> None:
        """A stage made steps; with `is_news` it has new scores."""

    def ended(self, stage: Stage, whole: bool) -> None:
        """A stage ended; not `whole`, by an error or a signal."""

    def said(self, message: str) -> None:
        """There is something to know, in one line."""


class Lines(Listener):
    """Plain lines on stderr: when a stage begins, now and then while it runs, and when it ends."""

    def begun(self, stage: Stage) -> None:
        """Say how many steps there are, or, of a stage that is under way, when it will end."""
        self.said(f"{stage.title}: {_running(stage) if stage.done > stage.before else _amount(stage)}")
        if stage.done > stage.before:
            stage.shown_at, stage.shown_done = stage.seconds, stage.done

    def advanced(self, stage: Stage, is_news: bool) -> None:
        """Say how far it is if that has not been said for long."""
        waited, gone = stage.seconds - stage.shown_at, stage.done - stage.shown_done
        is_first = stage.shown_done == stage.before
        enough = gone >= _SHARE * (stage.total or 0) if not is_first else gone > 0
        if stage.done != stage.total and (waited > _LONG or (enough and waited > (_FIRST if is_first else _SECONDS))):
            stage.shown_at, stage.shown_done = stage.seconds, stage.done
            self.said(f"{stage.title}: {_running(stage)}")

    def ended(self, stage: Stage, whole: bool) -> None:
        """Say how long it took, and what came out."""
        self.said(outcome(stage, whole))

    def said(self, message: str) -> None:
        """Write the line, in one piece: threads may share the stream."""
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()


# None for `Lines`.
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_is_within: ContextVar[bool] = ContextVar("is_within", default=False)


@contextmanager
def told_to(listener: Listener) -> Iterator[None]:
    """Tell everything in the block to this listener; `Listener()` hears nothing. Other threads have their own."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def say(message: str) -> None:
    """Tell something worth knowing, in one line."""
    _told().said(message)


@contextmanager
def stage(
    title: str, total: int | None = None, unit: str = "steps", *, before: int = 0, delay: float = 0
) -> Iterator[Stage]:
    """Tell of the block as one stage of the work; within another stage, nothing.

    Args:
        title: what it does, in a few words.
        total: steps of the whole; None if nobody knows.
        unit: what these are, in the plural.
        before: steps that an earlier process did.
        delay: seconds that it may take without being told at all.
    """
    shown = _stage(title, total, unit, before, delay)
    was_within, whole = _is_within.get(), False
    _is_within.set(True)
    shown._begin()
    try:
        yield shown
        whole = True
    finally:
        _is_within.set(was_within)
        shown._end(whole=whole)


def tracked(
    items: Iterable[Item], title: str, total: int, unit: str = "steps", *, before: int = 0, delay: float = 5
) -> Iterator[Item]:
    """The items, of which each is a step of a stage that is told once it takes longer than `delay` seconds.

    The loop's body is not within that stage, as a block of `stage` is: a generator that is left to itself would leave
    everything after it so.
    """
    shown, whole = _stage(title, total, unit, before, delay), False
    shown._begin()
    try:
        for item in items:
            yield item
            shown.advance()
        whole = True
    finally:
        shown._end(whole=whole)


def _stage(title: str, total: int | None, unit: str, before: int, delay: float) -> Stage:
    return Stage(Listener() if _is_within.get() else _told(), title, total, unit, before, delay)


def _told() -> Listener:
    # Of the processes of torchrun or accelerate launch, the first one speaks.
    return _listener.get() or Lines() if os.environ.get("RANK", "0") == "0" else Listener()


def outcome(stage: Stage, whole: bool) -> str:
    """The last line of a stage: its steps, how long it took, and what came out."""
    if not whole:
        reached = f"{_reached(stage)}, " if _counts(stage) else ""
        return f"{stage.title}: stopped after {reached}{duration(stage.seconds)}"
    steps = f"{stage.done:,} {stage.unit} in " if _counts(stage) else ""
    return f"{stage.title}: {steps}{duration(stage.seconds)}{_with_scores(stage)}"


def _counts(stage: Stage) -> bool:
    """Whether its steps say anything."""
    return stage.total is not None or stage.done > 0


def prospect(stage: Stage) -> str:
    """When a stage will end, and its newest numbers."""
    left = stage.remaining
    return (f"ends about {clock(left)}" if left is not None else "") + _with_scores(stage)


def _running(stage: Stage) -> str:
    return ", ".join(filter(None, (_reached(stage), prospect(stage))))


def _reached(stage: Stage) -> str:
    return f"{stage.done:,} {stage.unit}" if stage.total is None else f"{stage.done:,} of {_amount(stage)}"


def _amount(stage: Stage) -> str:
    if stage.total is None:
        return "begins"
    goes_on = f", goes on after {stage.done:,}" if stage.before and stage.done == stage.before else ""
    return f"{stage.total:,} {stage.unit}{goes_on}"


def _with_scores(stage: Stage) -> str:
    shown = [f"{name.replace('_', ' ')} {_value(value)}" for name, value in stage.scores.items()]
    return f"; {', '.join(shown)}" if shown else ""


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """A time span in words.

    >>> duration(0.42), duration(42.4), duration(125), duration(3 * 3600 + 125)
    ('0.4 s', '42 s', '2 min 5 s', '3 h 2 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def clock(seconds: float) -> str:
    """The time of day in so many seconds, with the date if that is another day's."""
    then = time.localtime(time.time() + min(seconds, 1e9))
    is_today = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M", then)


def plain(value: Any) -> Any:
    """A score as JSON takes it: text, or a number, None for one that is not finite."""
    if value is None or isinstance(value, str | int):
        return value
    return float(value) if math.isfinite(value) else None
