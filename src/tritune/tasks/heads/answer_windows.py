"""Contexts longer than a model can read: cut into windows that overlap, and answers read out of all of them.

As in BERT (Devlin et al., 2019): a window is the question and a part of its context; where the answer does not lie in
the window, its label is the first token, which then means "not here". A third of the length overlaps and a sixth is
the most that a question may take: 128 and 64 of 384 tokens, the published values. Of all valid spans of all windows the
one with the largest sum of logits is the answer, found exactly rather than among the n best starts and ends.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ...errors import TrituneError
from .text import tokenized

LONGEST_ANSWER = 30
_SHORTEST_WINDOW = 24
# Of a window, beside what the tokenizer returns: its question, its first token of the context, and for every token of
# the context the characters from which and up to which it stands; and how many tokens it has.
_PLACES = ("question", "first", "starts_at", "ends_at", "tokens")


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


def cut(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None, title: str
) -> tuple[Dataset, Callable[[np.ndarray], list[Span]]]:
    """Windows of all questions, and what reads spans out of the logits of all windows.

    Args:
        rows: `id`, `question`, `context` and, for labels, `starts` and `answers`.
        tokenizer: a fast one.
        max_length: tokens of a window.
        title: of the progress bar.

    Returns:
        The windows, with `labels`, (start token, end token), where `rows` has answers; and a function from logits,
        (windows, tokens, 2), to one span a question.

    Raises:
        TrituneError: there is no room for question and context, or a context has no tokens.
    """
    if max_length is None or max_length < _SHORTEST_WINDOW:
        raise TrituneError(f"max_length {max_length}: a question and its context need at least {_SHORTEST_WINDOW}")

    def tokenize(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
        """Columns of questions to columns of windows."""
        encoded = tokenizer(
            _shortened(batch["question"], tokenizer, max_length // 6),
            batch["context"],
            truncation="only_second",
            max_length=max_length,
            stride=max_length // 3,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        of_row, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        labelled = ["labels"] if "starts" in batch else []
        columns = {name: list(values) for name, values in encoded.items()} | {n: [] for n in (*_PLACES, *labelled)}
        for window, row in enumerate(of_row):
            parts = encoded.sequence_ids(window)
            if 1 not in parts:
                raise TrituneError(f"{title}, question {batch['id'][row]!r}: its context has no tokens")
            first, last = parts.index(1), len(parts) - parts[::-1].index(1)
            starts, ends = (list(places) for places in zip(*offsets[window][first:last], strict=True))
            for name, value in zip(_PLACES, (numbers[row], first, starts, ends, len(parts)), strict=True):
                columns[name].append(value)
            if labelled:
                columns["labels"].append(_label(batch, row, first, starts, ends))
        return columns

    windows = tokenized(rows, tokenize, rows.column_names, title)
    return windows.remove_columns(list(_PLACES)), partial(spans, windows=windows.select_columns(list(_PLACES)))


def _shortened(questions: list[str], tokenizer: PreTrainedTokenizerBase, tokens: int) -> list[str]:
    offsets = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        question if len(places) <= tokens else question[: places[tokens - 1][1]]
        for question, places in zip(questions, offsets["offset_mapping"], strict=True)
    ]


def _label(batch: dict[str, list], row: int, first: int, starts: Sequence[int], ends: Sequence[int]) -> list[int]:
    """First and last token of the first answer in this window; twice the first token of all if it is not here.

    >>> _label({"starts": [[4]], "answers": [["is"]]}, 0, 3, [0, 4, 7], [3, 6, 9])
    [4, 4]
    """
    if not batch["starts"][row]:
        return [0, 0]
    text, begin = batch["answers"][row][0], batch["starts"][row][0]
    end, begin = begin + len(text.rstrip()), begin + len(text) - len(text.lstrip())
    if begin < starts[0] or end > ends[-1]:
        return [0, 0]
    # Every token of which a character belongs to the answer.
    start_token = int(np.searchsorted(ends, begin, side="right"))
    end_token = int(np.searchsorted(starts, end, side="left")) - 1
    return [first + start_token, first + end_token] if start_token <= end_token else [0, 0]


def spans(logits: np.ndarray, windows: Any) -> list[Span]:
    """The best span of every question over all its windows, rows of `_PLACES`.

    `logits` are (windows, tokens, 2), of start and end. Raises TrituneError if their shape does not fit the windows, or
    some are not finite.
    """
    if logits.ndim != 3 or len(logits) != len(windows) or logits.shape[2] != 2:
        raise TrituneError(f"cannot read answers from logits of shape {logits.shape} for {len(windows)} windows")
    best: dict[int, Span] = {}
    bad = 0
    for window, scores in zip(windows, logits.astype(np.float64), strict=True):
        scores = scores[: window["tokens"]]
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
