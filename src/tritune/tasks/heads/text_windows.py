"""Texts longer than a model is given: read in windows that overlap, whose logits are averaged to an answer a text."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ...errors import TrituneError
from .text import check_room, tokenized

# Beside the tokenizer's columns, for as long as windows are made.
_TEXT = "window_of_text"


def cut(
    rows: Dataset, columns: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int | None, title: str
) -> tuple[Dataset, np.ndarray]:
    """The windows of all texts, in order, and of every window the number of its text, (windows,).

    Args:
        rows: a column of texts, and others, whose values all windows of a text have; `label` becomes `labels`.
        columns: the one of the texts.
        tokenizer: of the model.
        max_length: tokens of a window, its special tokens among them; None for one window a text.
        title: what messages and the progress call the texts.

    Raises:
        TrituneError: they are pairs, or `max_length` leaves no room for text.
    """
    if len(columns) != 1:
        raise TrituneError(f"{title}: long_texts window is for single texts, these are pairs; take truncate")
    check_room(tokenizer, 1, max_length)
    others = [name for name in rows.column_names if name not in columns]

    def tokenize(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
        """Columns of texts to columns of windows."""
        whole = dict(tokenizer(batch[columns[0]], return_special_tokens_mask=True, verbose=False))
        kept = [
            (text, places)
            for text, special in enumerate(whole.pop("special_tokens_mask"))
            for places in window_places(special, max_length)
        ]
        windows = {name: [[of[text][place] for place in places] for text, places in kept] for name, of in whole.items()}
        repeated = {name: [batch[name][text] for text, _ in kept] for name in others}
        return windows | repeated | {_TEXT: [numbers[text] for text, _ in kept]}

    windows = tokenized(rows, tokenize, rows.column_names, title)
    of_text, windows = np.asarray(windows[_TEXT]), windows.remove_columns(_TEXT)
    return (windows.rename_column("label", "labels") if "label" in others else windows), of_text


def window_places(special: Sequence[int], max_length: int | None) -> list[list[int]]:
    """The places of a text's tokens that each of its windows has: the special tokens, and as many others as have room.

    Every window begins half of that room, rounded up, after the one before. The last has what is left.

    Args:
        special: 1 at tokens that the tokenizer has added at the beginning and at the end, (tokens,).
        max_length: more than the number of those; None for one window.

    >>> window_places([1, 0, 0, 0, 0, 0, 1], max_length=6)
    [[0, 1, 2, 3, 4, 6], [0, 3, 4, 5, 6]]
    """
    if max_length is None or len(special) <= max_length:
        return [list(range(len(special)))]
    text = np.flatnonzero(np.equal(special, 0)).tolist()
    first, end = text[0], text[-1] + 1
    room = max_length - (len(special) - (end - first))
    step = (room + 1) // 2
    before, after = range(first), range(end, len(special))
    # The first that reaches the end is the last.
    starts = range(first, end - room + step, step)
    return [[*before, *range(start, min(start + room, end)), *after] for start in starts]


def averaged(read: np.ndarray, of_text: np.ndarray) -> np.ndarray:
    """The mean over the windows of every text, (texts, ...), in the type of `read`, to the bit where there is but one.

    Args:
        read: logits of windows, (windows, ...).
        of_text: of every window the number of its text, from 0 without gaps, (windows,).

    >>> averaged(np.array([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]]), np.array([0, 0, 1]))
    array([[2., 1.],
           [5., 5.]])
    """
    sums = np.add.reduceat(read, first_windows(of_text), axis=0, dtype=np.float64)
    counts = np.bincount(of_text).reshape(-1, *[1] * (read.ndim - 1))
    return (sums / counts).astype(read.dtype)


def first_windows(of_text: np.ndarray) -> np.ndarray:
    """The first window of every text, (texts,).

    >>> first_windows(np.array([0, 0, 1, 2, 2]))
    array([0, 2, 3])
    """
    return np.unique(of_text, return_index=True)[1]
