"""Contexts longer than a model can read: cut into windows that overlap, and answers read out of all of them.

As in BERT (Devlin et al., 2019): a window is the question and a part of its context; where the answer does not lie in
the window, its label is the first token, which then means "not here". A third of the length overlaps and a sixth is
the most that a question may take: 128 and 64 of 384 tokens, the published values. `engine.spans` reads the answers.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ...engine.spans import PLACES, Span, check_window, places_of, shortened, spans
from ...errors import TrituneError
from .text import tokenized


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
    max_length = check_window(max_length)

    def tokenize(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
        """Columns of questions to columns of windows."""
        encoded = tokenizer(
            _shortened(batch["question"], tokenizer, max_length),
            batch["context"],
            truncation="only_second",
            max_length=max_length,
            stride=max_length // 3,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        of_row, offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
        labelled = ["labels"] if "starts" in batch else []
        columns = {name: list(values) for name, values in encoded.items()} | {n: [] for n in (*PLACES, *labelled)}
        for window, row in enumerate(of_row):
            places = places_of(numbers[row], encoded.sequence_ids(window), offsets[window])
            if places is None:
                raise TrituneError(f"{title}, question {batch['id'][row]!r}: its context has no tokens")
            for name, value in zip(PLACES, places, strict=True):
                columns[name].append(value)
            if labelled:
                columns["labels"].append(_label(batch, row, *places[1:4]))
        return columns

    windows = tokenized(rows, tokenize, rows.column_names, title)
    return windows.remove_columns(list(PLACES)), partial(spans, windows=windows.select_columns(list(PLACES)))


def _shortened(questions: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[str]:
    encoded = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    pairs = zip(questions, encoded["offset_mapping"], strict=True)
    return [shortened(question, offsets, max_length) for question, offsets in pairs]


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
