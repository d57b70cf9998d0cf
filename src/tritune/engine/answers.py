"""What logits mean: labels with probabilities, a score, tags of words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import TrituneError

# As transformers' configs name the problem.
MULTI_LABEL = "multi_label_classification"
# The tag of a word that is part of no name.
OUTSIDE = "O"


def label_names(id2label: Mapping[Any, Any] | None) -> tuple[str, ...]:
    """The `id2label` of a config in id order; an id stands for a name that is missing.

    >>> label_names({"1": "good", "0": "bad"})
    ('bad', 'good')
    """
    names = {int(index): str(name) for index, name in (id2label or {}).items()}
    return tuple(names.get(index, str(index)) for index in range(len(names)))


def is_score(outputs: int | None, problem_type: str | None) -> bool:
    """Whether a model of so many outputs gives a score, not labels."""
    return outputs == 1 and problem_type != MULTI_LABEL


def predictions(logits: np.ndarray, labels: Sequence[str], problem_type: str | None) -> list[Any]:
    """The prediction of every row of logits, (rows, labels).

    That is a label's name; where a row may have many labels, a list of those that are more likely than not, in id
    order; of a model with a single logit, the score.

    >>> predictions(np.array([[0.5, -1.0]]), ("good", "bad"), None)
    ['good']
    """
    if is_score(logits.shape[1], problem_type):
        return [float(score) for score in logits[:, 0]]
    if problem_type == MULTI_LABEL:
        return [[label for label, score in zip(labels, row, strict=True) if score > 0] for row in logits]
    return [labels[index] for index in logits.argmax(-1)]


def probabilities(logits: np.ndarray, problem_type: str | None) -> np.ndarray:
    """Float64, (rows, labels): softmax over the labels, or each label's sigmoid where a row may have many.

    >>> probabilities(np.zeros((1, 4)), None)
    array([[0.25, 0.25, 0.25, 0.25]])
    """
    wide = logits.astype(np.float64)
    if problem_type == MULTI_LABEL:
        small = np.exp(-np.abs(wide))
        return np.where(wide < 0, small, 1.0) / (1 + small)
    shares = np.exp(wide - wide.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def first_row_not_finite(logits: np.ndarray) -> int | None:
    """The first row, counted from 1, with NaN or infinite logits, whose argmax would be a label like any other."""
    bad = np.flatnonzero(~np.isfinite(logits).all(-1))
    return int(bad[0]) + 1 if len(bad) else None


def first_tokens(words_of_tokens: Sequence[int | None], words: int) -> list[int]:
    """The first token of every word; -1 for a word that has none.

    >>> first_tokens([None, 0, 0, 2, None], words=3)
    [1, -1, 3]
    """
    places = {word: place for place, word in reversed(list(enumerate(words_of_tokens))) if word is not None}
    return [places.get(word, -1) for word in range(words)]


def tags_of(
    logits: Sequence[np.ndarray] | np.ndarray, places: Sequence[Sequence[int]], labels: Sequence[str]
) -> list[list[str]]:
    """The tags of all words, from the logits of every sentence, (tokens, labels), and its words' `first_tokens`.

    A word takes the label of its first token; one that has none is tagged `O`. Raises TrituneError if the shapes do not
    fit or a word's logits are not finite.
    """
    if len(logits) != len(places) or any(np.shape(row)[1:] != (len(labels),) for row in logits):
        shapes = sorted({np.shape(row) for row in logits})
        raise TrituneError(f"cannot read {len(labels)} tags of {len(places)} sentences from logits of shapes {shapes}")
    read = [row[[place for place in of if place >= 0]] for row, of in zip(logits, places, strict=True)]
    if bad := sum(not np.isfinite(row).all() for row in read):
        raise TrituneError(f"{bad} of {len(logits)} sentences have NaN or infinite logits: there is no score")
    best = (iter(row.argmax(-1)) for row in read)
    return [
        [labels[next(row)] if place >= 0 else OUTSIDE for place in of] for row, of in zip(best, places, strict=True)
    ]
