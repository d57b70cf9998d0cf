"""Answers that are parts of a text: read out of the logits of all windows that the text was cut into.

A window is a question and a part of its context, as in BERT (Devlin et al., 2019). Of all valid spans of all windows
the one with the largest sum of logits is the answer, found exactly rather than among the n best starts and ends.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import TrituneError

LONGEST_ANSWER = 30
SHORTEST_WINDOW = 24
# Of a window, beside its tokens: its question, its first token of the context, and for every token of the context the
# characters from which and up to which it stands; and how many tokens it has.
PLACES = ("question", "first", "starts_at", "ends_at", "tokens")


@dataclass(frozen=True)
class Span:
    """An answer in a context.

    Attributes:
        start, end: its first character and the one after its last.
        score: start logit plus end logit.
        probability: of start times that of end, in its window.
        none_score, none_probability: the same of the first token, the smallest of all windows.
    """

    start: int
    end: int
    score: float
    probability: float
    none_score: float
    none_probability: float


def check_window(max_length: int | None) -> int:
    """The tokens of a window; TrituneError if they have no room for a question and its context."""
    if max_length is None or max_length < SHORTEST_WINDOW:
        raise TrituneError(f"max_length {max_length}: a question and its context need at least {SHORTEST_WINDOW}")
    return max_length


def shortened(question: str, offsets: Sequence[tuple[int, int]], max_length: int) -> str:
    """A question of no more tokens than it may take, by the characters of its tokens.

    >>> shortened("who is it", [(0, 3), (4, 6), (7, 9)], max_length=12)
    'who is'
    """
    tokens = max_length // 6
    return question if len(offsets) <= tokens else question[: offsets[tokens - 1][1]]


def places_of(
    question: int, parts: Sequence[int | None], offsets: Sequence[tuple[int, int]]
) -> tuple[int, int, list[int], list[int], int] | None:
    """The values of `PLACES` of a window; None if it has no token of the context.

    Args:
        question: its number.
        parts: for every token 0 in the question, 1 in the context, None for a special one.
        offsets: the characters of every token.
    """
    if 1 not in parts:
        return None
    first, last = parts.index(1), len(parts) - [*reversed(parts)].index(1)
    starts, ends = (list(characters) for characters in zip(*offsets[first:last], strict=True))
    return question, first, starts, ends, len(parts)


def spans(logits: Sequence[np.ndarray] | np.ndarray, windows: Sequence[dict[str, Any]]) -> list[Span]:
    """The best span of every question over all its windows, dictionaries of `PLACES`.

    `logits` are those of every window, (tokens, 2), of start and end; more tokens than it has are not looked at. Raises
    TrituneError if their shape does not fit the windows, or some are not finite.
    """
    shapes = {np.shape(scores)[1:] for scores in logits}
    if len(logits) != len(windows) or shapes - {(2,)}:
        shape = (len(logits), "tokens", *min(shapes, default=()))
        raise TrituneError(f"cannot read answers from logits of shape {shape} for {len(windows)} windows")
    best: dict[int, Span] = {}
    bad = 0
    for window, of_tokens in zip(windows, logits, strict=True):
        scores = of_tokens[: window["tokens"]].astype(np.float64)
        if not np.isfinite(scores).all():
            bad += 1
            continue
        span, before = _best(scores, window), best.get(window["question"])
        best[window["question"]] = span if before is None else _merged(before, span)
    if bad:
        raise TrituneError(f"{bad} of {len(logits)} windows have NaN or infinite logits: there is no score")
    return [best[question] for question in sorted(best)]


def _best(scores: np.ndarray, window: dict[str, Any]) -> Span:
    """The best span of one window from its logits, (tokens, 2), padding left out."""
    first, count = window["first"], len(window["starts_at"])
    start, end = scores[first : first + count].T
    # Row d holds the spans of d + 1 tokens.
    sums = np.full((min(LONGEST_ANSWER, count), count), -np.inf)
    for more in range(len(sums)):
        sums[more, : count - more] = start[: count - more] + end[more:]
    longer, token = map(int, np.unravel_index(sums.argmax(), sums.shape))
    total = np.logaddexp.reduce(scores, axis=0).sum()
    none = scores[0].sum()
    return Span(
        start=window["starts_at"][token],
        end=window["ends_at"][token + longer],
        score=float(sums[longer, token]),
        probability=float(np.exp(sums[longer, token] - total)),
        none_score=float(none),
        none_probability=float(np.exp(none - total)),
    )


def _merged(one: Span, other: Span) -> Span:
    return replace(
        max(one, other, key=lambda span: span.score),
        none_score=min(one.none_score, other.none_score),
        none_probability=min(one.none_probability, other.none_probability),
    )
