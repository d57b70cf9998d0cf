"""The words nearest to a word by the cosine of their vectors: GloVe's, or a language model's own input embeddings.

Source: Pennington et al., "GloVe", EMNLP 2014, for the vectors and the format of their files.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...errors import TrituneError, shown
from ..table import number_in

# A GloVe file is sorted by frequency, and what comes later is mostly misspelt or foreign. TinyBERT reads as many.
GLOVE_WORDS = 100_000


class Neighbours:
    """The nearest words to a word, the word itself left out; each word is searched once.

    Args:
        words, vectors: that may be answered, and theirs, (words, width); only alphabetic ones are kept.
        vector_of: the vector of any word, (width,), or None where it has none.
        count: words per answer.

    >>> vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [1.0, 0.0]])
    >>> words = ["cat", "dog", "of", "..."]
    >>> Neighbours(words, vectors, dict(zip(words, vectors)).get, 1)("cat")
    ('dog',)
    """

    def __init__(
        self, words: Sequence[str], vectors: np.ndarray, vector_of: Callable[[str], np.ndarray | None], count: int
    ):
        norms = np.linalg.norm(vectors, axis=1)
        # A zero vector has no direction.
        kept = [place for place, word in enumerate(words) if word.isalpha() and norms[place] > 0]
        self._words = [words[place] for place in kept]
        self._directions = vectors[kept] / norms[kept, None]
        self._vector_of, self._count = vector_of, count
        self._known: dict[str, tuple[str, ...]] = {}

    def __call__(self, word: str) -> tuple[str, ...]:
        """At most `count` words, nearest first; none for a word without a vector."""
        if word not in self._known:
            self._known[word] = self._nearest(word)
        return self._known[word]

    def _nearest(self, word: str) -> tuple[str, ...]:
        vector = self._vector_of(word)
        if vector is None or not vector.any():
            return ()
        order = np.argsort(-(self._directions @ (vector / np.linalg.norm(vector))), kind="stable")
        # The word may stand there in capitals too.
        others = (self._words[place] for place in order if self._words[place].casefold() != word.casefold())
        return tuple(islice(others, self._count))


def glove_neighbours(path: str | Path, count: int) -> Neighbours:
    """Neighbours among the words of a GloVe file; a word that is not there is looked up in lower case too.

    Raises TrituneError as `read_glove` does.
    """
    words, vectors = read_glove(path)
    places = {word: place for place, word in reversed(list(enumerate(words)))}

    def vector_of(word: str) -> np.ndarray | None:
        place = places.get(word, places.get(word.lower()))
        return None if place is None else vectors[place]

    return Neighbours(words, vectors, vector_of, count)


def embedding_neighbours(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, words: dict[int, str], count: int
) -> Neighbours:
    """Neighbours by the input embeddings of a language model: where there is no GloVe file.

    Answers are of `words`, token id to word, see `augment.whole_words`. The vector of a word of several pieces is the
    mean of theirs.
    """
    table = model.get_input_embeddings().state_dict()["weight"].float().cpu().numpy()

    def vector_of(word: str) -> np.ndarray | None:
        pieces = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        return table[pieces].mean(axis=0) if pieces else None

    return Neighbours(list(words.values()), table[list(words)], vector_of, count)


def read_glove(path: str | Path, limit: int = GLOVE_WORDS) -> tuple[list[str], np.ndarray]:
    """The words and vectors, (words, width), of the first `limit` rows of a GloVe file.

    A row is a word and its numbers with spaces between; the first row says how many. A word that holds spaces itself,
    as some of the larger files have, is taken for what it is.

    Raises TrituneError if the file cannot be read or holds no row, or a row has another width or a number that is none
    or not finite; the message names file and line.
    """
    words: list[str] = []
    vectors: list[np.ndarray] = []
    width = 0
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                if len(words) == limit:
                    break
                if not line.strip():
                    continue
                word, vector = _row(line, width, f"{path}, line {number}")
                width = width or len(vector)
                words.append(word)
                vectors.append(vector)
    except OSError as error:
        raise TrituneError(f"{path}: cannot be read ({error.strerror}); --glove takes a GloVe file of text") from None
    if not words:
        raise TrituneError(f"{path}: holds no word vectors")
    return words, np.stack(vectors)


def _row(line: bytes, width: int, where: str) -> tuple[str, np.ndarray]:
    """The word and the vector of a row; `width` 0 takes as many numbers as there are."""
    try:
        fields = line.decode("utf-8").rstrip().split(" ")
    except UnicodeDecodeError:
        raise TrituneError(f"{where}: not UTF-8 text; --glove takes a GloVe file of text") from None
    found = len(fields) - 1
    start = len(fields) - (width or found)
    if found < max(width, 2) or any(number_in(field) is not None for field in fields[1:start]):
        wanted = f"the rows before have {width}" if width else "a word and its vector are wanted"
        raise TrituneError(f"{where}: {found} numbers, {wanted}; repair or drop the row")
    try:
        # A double may be finite where a float is not.
        with np.errstate(over="ignore"):
            vector = np.array([float(field) for field in fields[start:]], dtype=np.float32)
    except ValueError as error:
        raise TrituneError(f"{where}: {str(error)[:120]}; repair or drop the row") from None
    if not np.isfinite(vector).all():
        raise TrituneError(f"{where}: the vector of {shown(fields[0])} holds NaN or infinite values; drop the row")
    return " ".join(fields[:start]), vector
