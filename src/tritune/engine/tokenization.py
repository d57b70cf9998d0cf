"""From texts to token ids, by the `tokenizer.json` of a model's folder, without transformers.

What transformers' tokenizers add to that file is read from `tokenizer_config.json`: from which side a text is
truncated, and whether the two texts of a pair have token types of their own.
"""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from ..errors import TrituneError, first_line, shown
from .spans import PLACES, check_window, places_of, shortened

TOKENIZER = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
# The tokenizers of transformers that return token types, and the models whose tokenizer is one of them by default.
_WITH_TYPES, _MODELS_WITH_TYPES = ("BertTokenizer", "ElectraTokenizer"), ("bert", "electra")
# As a byte-level tokenizer is written that leaves a space before the first word out.
_NO_SPACE, _SPACE = '"add_prefix_space":false', '"add_prefix_space":true'


class Batch(NamedTuple):
    """Sequences without padding, one after the other, as `Model.run` takes them."""

    ids: np.ndarray
    offsets: np.ndarray
    types: np.ndarray | None


class Tokenization:
    """The tokenizer of a model; any number of threads may use it at once.

    Args:
        folder: of the model.
        config: the content of its `config.json`.
        vocabulary: ids are below it.

    Raises:
        TrituneError: there is no tokenizer.json, or it cannot be used.
    """

    def __init__(self, folder: Path, config: dict[str, Any], vocabulary: int):
        self.folder = folder
        if not (folder / TOKENIZER).is_file():
            raise TrituneError(
                f"{folder}: has no {TOKENIZER}, which the engine needs; save the fast tokenizer of the model into its "
                "folder, or use tritune.load"
            )
        self.config = _read_config(folder / _CONFIG)
        self._tokenizer = self._read()
        size = self._tokenizer.get_vocab_size()
        if not 0 < size <= vocabulary:
            raise TrituneError(
                f"{folder}: the tokenizer has {size} tokens and the model's embedding {vocabulary} rows; they do not "
                "belong together"
            )
        names = self.config.get("model_input_names")
        kind = self.config.get("tokenizer_class") or config.get("tokenizer_class")
        if isinstance(names, list):
            self.has_types = "token_type_ids" in names
        elif kind is None:
            self.has_types = config.get("model_type") in _MODELS_WITH_TYPES
        else:
            self.has_types = str(kind).removesuffix("Fast") in _WITH_TYPES

    def limit(self, max_length: int) -> None:
        """Truncate texts to so many tokens from now on, a pair by taking tokens from the longer text.

        Raises:
            TrituneError: there is no room beside the special tokens.
        """
        special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if max_length <= special:
            raise TrituneError(f"max_length {max_length} leaves no room for text beside {special} special tokens")
        self.max_length = max_length
        self._truncate(self._tokenizer, strategy="longest_first")

    def sequences(self, texts: Sequence[str], pairs: Sequence[str] | None, parallel: bool) -> list[Encoding]:
        """Texts, or pairs of texts, to their tokens.

        Raises:
            TrituneError: something is not text, has no tokens, or there is no room for two texts.
        """
        if pairs is not None and self._tokenizer.num_special_tokens_to_add(is_pair=True) >= self.max_length:
            raise TrituneError(f"max_length {self.max_length} leaves no room for two texts beside the special tokens")
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        return _encoded(self._tokenizer, inputs, parallel)

    def for_words(self) -> "Words":
        """The same tokenizer for texts that are split into words.

        A byte-level one (RoBERTa's) writes the space before a word into its tokens, so it must be told to.
        """
        text = self._tokenizer.to_str()
        tokenizer = Tokenizer.from_str(text.replace(_NO_SPACE, _SPACE)) if _NO_SPACE in text else self._tokenizer
        return Words(tokenizer)

    def for_windows(self) -> "Windows":
        """The same tokenizer for questions and contexts that are cut into windows.

        Raises:
            TrituneError: a window has no room for both.
        """
        tokenizer = self._read()
        self._truncate(tokenizer, strategy="only_second", stride=check_window(self.max_length) // 3)
        return Windows(self._tokenizer, tokenizer, self.max_length)

    def batch(self, encodings: Sequence[Encoding]) -> Batch:
        """Tokens as the model takes them."""
        offsets = np.zeros(len(encodings) + 1, np.int64)
        np.cumsum([len(encoding.ids) for encoding in encodings], out=offsets[1:])
        ids, types = (
            np.fromiter(chain.from_iterable(rows), np.int32, offsets[-1])
            for rows in ((encoding.ids for encoding in encodings), (encoding.type_ids for encoding in encodings))
        )
        return Batch(ids, offsets, types if self.has_types else None)

    def _read(self) -> Tokenizer:
        try:
            tokenizer = Tokenizer.from_file(str(self.folder / TOKENIZER))
            tokenizer.encode_special_tokens = bool(self.config.get("split_special_tokens"))
        except Exception as error:  # of no class of its own
            raise TrituneError(
                f"{self.folder / TOKENIZER}: cannot be read ({first_line(error)}); save the model's tokenizer again"
            ) from None
        tokenizer.no_padding()
        return tokenizer

    @property
    def truncation_side(self) -> str:
        """From which side a text is truncated.

        Raises:
            TrituneError: it is neither left nor right.
        """
        side = self.config.get("truncation_side", "right")
        if side not in ("left", "right"):
            raise TrituneError(f"{self.folder / _CONFIG}: truncation_side must be left or right; got {shown(side)}")
        return side

    def _truncate(self, tokenizer: Tokenizer, **options: Any) -> None:
        tokenizer.enable_truncation(self.max_length, direction=self.truncation_side, **options)


class Words(NamedTuple):
    """A tokenizer for texts that are split into words."""

    tokenizer: Tokenizer

    def sequences(self, sentences: Sequence[Sequence[str]], parallel: bool) -> list[Encoding]:
        """Lists of words to their tokens; `Encoding.word_ids` says to which word each belongs."""
        return _encoded(self.tokenizer, list(map(list, sentences)), parallel, is_pretokenized=True)


class Windows(NamedTuple):
    """A tokenizer for questions and contexts, the latter cut into windows of `max_length` tokens."""

    questions: Tokenizer
    tokenizer: Tokenizer
    max_length: int

    def cut(
        self, questions: Sequence[str], contexts: Sequence[str], parallel: bool
    ) -> tuple[list[Encoding], list[dict[str, Any]]]:
        """The windows of all questions, and their places as `spans` takes them.

        Raises:
            TrituneError: a context has no tokens.
        """
        alone = _encoded(self.questions, list(questions), parallel, add_special_tokens=False)
        asked = [shortened(text, of.offsets, self.max_length) for text, of in zip(questions, alone, strict=True)]
        windows, places = [], []
        found = _encoded(self.tokenizer, list(zip(asked, contexts, strict=True)), parallel)
        for number, encoding in enumerate(found):
            for window in (encoding, *encoding.overflowing):
                of_window = places_of(number, window.sequence_ids, window.offsets)
                if of_window is None:
                    raise TrituneError(f"{shown(contexts[number])}: this context has no tokens")
                windows.append(window)
                places.append(dict(zip(PLACES, of_window, strict=True)))
        return windows, places


def _encoded(tokenizer: Tokenizer, inputs: list[Any], parallel: bool, **options: bool) -> list[Encoding]:
    try:
        if parallel and len(inputs) > 1:
            return tokenizer.encode_batch(inputs, **options)
        pairs = (each if isinstance(each, tuple) else (each, None) for each in inputs)
        return [tokenizer.encode(*pair, **options) for pair in pairs]
    except Exception as error:  # of no class of its own
        raise TrituneError(f"the tokenizer cannot read a text ({first_line(error)})") from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise TrituneError(f"{path}: cannot be read ({first_line(error)}); save the model's tokenizer again") from None
    if not isinstance(content, dict):
        raise TrituneError(f"{path}: not a JSON object; save the model's tokenizer again")
    return content
