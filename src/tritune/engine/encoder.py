"""Texts in, labels or embeddings out: a packed model that needs neither torch nor transformers."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..errors import TrituneError, shown
from .answers import (
    MULTI_LABEL,
    first_row_not_finite,
    first_tokens,
    is_score,
    label_names,
    predictions,
    probabilities,
    tags_of,
)
from .cores import cores
from .integrity import SECTION, read_packed
from .model import Model, Output
from .pooling import pooled
from .sentence_files import Settings, read_settings
from .spans import spans
from .tokenization import Tokenization

TEXTS, TAGS, SPANS, EMBEDDINGS = (
    "text-classification",
    "token-classification",
    "question-answering",
    "feature-extraction",
)
# The ends of class names, and the kind of task that such a model is made for.
_KINDS = {"ForSequenceClassification": TEXTS, "ForTokenClassification": TAGS, "ForQuestionAnswering": SPANS}
# Tokens of a text, or of a question and its context, where nothing beside a model says how many.
_USUAL_LENGTHS = {TEXTS: 128, TAGS: 128, SPANS: 384, EMBEDDINGS: 128}
# The key of a recipe, read without the seconds that importing a YAML library may take.
_RECIPE, _MAX_LENGTH = "recipe.yaml", re.compile(r"^max_length:[ \t]*(\d+)[ \t]*(?:#.*)?$", re.MULTILINE)
_LONG_TEXTS = re.compile(r"^long_texts:[ \t]*(head-tail|window)[ \t]*(?:#.*)?$", re.MULTILINE)
# Texts that are tokenized at once, and tokens of a thread that are run at once: more would only take more memory.
_TEXTS_AT_ONCE, _TOKENS_A_THREAD = 512, 512


def load(
    folder: str | Path, threads: int | None = None, isa: str | None = None, max_length: int | None = None
) -> "Encoder":
    """A packed model, run by the native engine without torch.

    Weights and config are checked before they are used, and the file of the weights is mapped, not copied: leave the
    folder unchanged as long as the model is there.

    Args:
        folder: what `tritune convert` wrote, with the model's `tokenizer.json`.
        threads: how many share the work of a call; None takes the physical cores that this process may use.
        isa: the instruction set to use; None takes the one that the environment variable `TRITUNE_ISA` names, or else
            the best that this processor has.
        max_length: tokens that are read of a text, or of a pair of texts; None takes what `tritune predict` takes: the
            recipe's, or 128 (384 for question answering), and for a sentence encoder that of sentence-transformers.

    Raises:
        TrituneError: the folder is no packed model with a tokenizer, is damaged, or the engine does not run such a
            model; the message says which, and what to do.
    """
    folder = Path(folder)
    for name, number in (("threads", threads), ("max_length", max_length)):
        if number is not None and (type(number) is not int or number < 1):
            raise TrituneError(f"{name} must be a whole number from 1 on; got {shown(number)}")
    packed = read_packed(folder)
    if packed.config[SECTION].get("activation_granularity") != "token":
        raise TrituneError(
            f"{folder}: its activations share a scale over the whole batch (activation_granularity: tensor), which the "
            "engine does not run; train with activation_granularity=token, or use tritune.load"
        )
    try:
        model = Model(packed.config_bytes, packed.weights, isa)
    except TrituneError as error:
        raise TrituneError(f"{folder}: {error}") from None
    packed.forget()  # the engine has its own layout of all but the embeddings, of which a text needs few rows
    if not model.vocabulary:
        raise TrituneError(f"{folder}: reads images and no texts; use tritune.load")
    tokenization = Tokenization(folder, packed.config, model.vocabulary)
    settings = read_settings(folder, lambda name: _content(folder / name))
    kind = _kind(packed.config)
    if max_length is None:
        if found := _LONG_TEXTS.search(_recipe_text(folder)):
            does = "keeps both ends of long texts" if found[1] == "head-tail" else "reads long texts in windows"
            raise TrituneError(
                f"{folder}: {does} ({_RECIPE}: long_texts), and here they are cut at their end; "
                "use `tritune predict`, or give max_length to cut them so all the same"
            )
        max_length = min(_max_length(folder, kind, settings, tokenization.config), model.max_tokens)
    if max_length > model.max_tokens:
        raise TrituneError(f"max_length {max_length} is more than the {model.max_tokens} positions of {folder}")
    tokenization.limit(max_length)
    return Encoder(folder, packed.config, model, tokenization, settings, threads or cores())


class Encoder:
    """A packed model that reads texts; `load` makes it.

    Any number of threads may use it at once. What a text gives does not depend on the texts beside it, to the bit.

    Attributes:
        folder: it was loaded from.
        kind: of task: `text-classification`, `token-classification`, `question-answering` or `feature-extraction`.
        labels: their names in id order; none of a model that gives a score, spans or embeddings.
        model: of arrays; see `Model`.
        threads: how many share the work of a call.
    """

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        model: Model,
        tokenization: Tokenization,
        settings: Settings,
        threads: int,
    ):
        self.folder, self.model, self.threads = folder, model, threads
        self.kind = _kind(config)
        self._tokenization, self._settings = tokenization, settings
        self._problem: str | None = config.get("problem_type")
        has_labels = self.kind == TAGS or (self.kind == TEXTS and not is_score(model.outputs, self._problem))
        self.labels = _labels(folder, config, model.outputs) if has_labels else ()
        self._words = tokenization.for_words() if self.kind == TAGS else None
        self._windows = tokenization.for_windows() if self.kind == SPANS else None

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return self.model.isa

    def settings(self) -> dict[str, Any]:
        """How texts become what the model gives, beyond `tokenizer.json`, for other programs that run the model.

        `max_length` in tokens, `truncation_side`, whether there are token types, whether a text may have many labels,
        and of embeddings the modes of pooling and whether they are normalized.
        """
        return {
            "max_length": self.max_length,
            "truncation_side": self._tokenization.truncation_side,
            "has_types": self._tokenization.has_types,
            "multi_label": self._problem == MULTI_LABEL,
            "pooling": list(self._settings.modes),
            "normalize": self._settings.normalize,
        }

    @property
    def max_length(self) -> int:
        """Tokens that are read of a text, or of a pair of texts."""
        return self._tokenization.max_length

    def logits(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> np.ndarray:
        """The logits of a text classifier, float32, (texts, outputs).

        Args:
            texts: any number.
            pairs: the second text of each, for models of pairs.

        Raises:
            TrituneError: something is not text or has no tokens, or the model is no text classifier.
        """
        if self.kind != TEXTS:
            use = "encode" if self.kind == EMBEDDINGS else "predict"
            raise TrituneError(f"{self.folder}: a model for {self.kind} has no logits of texts; use {use}")
        _check_texts(texts, pairs)
        found = [
            output.answers
            for start in range(0, len(texts), _TEXTS_AT_ONCE)
            for output, _ in self._outputs(self._tokens(texts, pairs, start))
            if output.answers is not None
        ]
        return np.concatenate(found) if found else np.empty((0, self.model.outputs), np.float32)

    def predict(self, texts: Sequence[Any], pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """What the model says of every text, under the names of `tritune predict` and rounded as there.

        A text classifier gives `prediction`, the name of the label (a list of names where a text may have many, a
        number where the model gives a score), and `probabilities` of all labels by name. For token classification a
        text is a list of words, or is split at spaces; the model gives `tags`, one a word. For question answering
        `texts` are the questions and `pairs` their contexts; the model gives `answer`, its probability `score`, and
        `no_answer_score`, which means something only in a model that was trained on questions without answers.

        Args:
            texts: any number.
            pairs: the second text of each, for models of pairs.

        Raises:
            TrituneError: something is not text or has no tokens, logits are not finite, or the model gives embeddings.
        """
        if self.kind == TEXTS:
            return self._labelled(self.logits(texts, pairs))
        if self._words is not None:
            if pairs is not None:
                raise TrituneError(f"{self.folder}: a model for {self.kind} reads one text at a time, not pairs")
            if isinstance(texts, str):
                _check_texts(texts, None)
            return list(self._tagged([_words(text, number) for number, text in enumerate(texts)]))
        if self._windows is None:
            raise TrituneError(f"{self.folder}: gives embeddings, not labels; use encode")
        if pairs is None:
            raise TrituneError(f"{self.folder}: a model for {self.kind} needs pairs: the context of every question")
        _check_texts(texts, pairs)
        return list(self._answered(texts, pairs))

    def encode(self, texts: Sequence[str], normalize: bool | None = None) -> np.ndarray:
        """Embeddings, float32, (texts, width): the hidden states of a text's tokens, pooled.

        The pooling is that of the files of sentence-transformers in the folder, or the mean where there are none.

        Args:
            texts: any number.
            normalize: whether to scale embeddings to length 1; None does what the files say.

        Raises:
            TrituneError: something is not text or has no tokens.
        """
        _check_texts(texts, None)
        modes, scaled = self._settings.modes, self._settings.normalize if normalize is None else normalize
        embeddings = np.empty((len(texts), len(modes) * self.model.hidden_size), np.float32)
        row = 0
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            for output, offsets in self._outputs(self._tokens(texts, None, start), hidden=True, answers=False):
                for states in _split(output.hidden, offsets):
                    embeddings[row] = pooled(states, modes, scaled)
                    row += 1
        return embeddings

    def run(self, ids: Any, offsets: Any, types: Any = None, **options: Any) -> Output:
        """One batch of token ids, see `Model.run`; `threads` are the model's own unless given."""
        return self.model.run(ids, offsets, types, **{"threads": self.threads} | options)

    def close(self) -> None:
        """Free the memory, as soon as calls that are under way have ended; the model cannot be used any more."""
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return f"<{self.kind} from {self.folder}, {self.isa}, {threads}, up to {self.max_length} tokens>"

    def _tokens(self, texts: Sequence[str], pairs: Sequence[str] | None, start: int) -> list[Any]:
        """The encodings of the texts that are tokenized at once from `start` on."""
        part = slice(start, start + _TEXTS_AT_ONCE)
        encodings = self._tokenization.sequences(texts[part], None if pairs is None else pairs[part], self.threads > 1)
        for number, encoding in enumerate(encodings, start):
            if not encoding.ids:
                raise TrituneError(f"texts[{number}]: has no tokens; drop it")
        return encodings

    def _outputs(self, encodings: Sequence[Any], **wanted: bool) -> Iterator[tuple[Output, np.ndarray]]:
        """What the model gives, batch by batch, with the offsets of the sequences of each batch."""
        first, tokens = 0, 0
        for end, encoding in enumerate([*encodings, None]):
            tokens += 0 if encoding is None else len(encoding.ids)
            if first < end and (encoding is None or tokens > _TOKENS_A_THREAD * self.threads):
                ids, offsets, types = self._tokenization.batch(encodings[first:end])
                yield self.run(ids, offsets, types, **wanted), offsets
                first, tokens = end, 0 if encoding is None else len(encoding.ids)

    def _labelled(self, logits: np.ndarray) -> list[dict[str, Any]]:
        if row := first_row_not_finite(logits):
            raise TrituneError(f"{self.folder}: gives NaN or infinite values for texts[{row - 1}]; train it again")
        found = [{"prediction": prediction} for prediction in predictions(logits, self.labels, self._problem)]
        if self.labels:
            for one, shares in zip(found, probabilities(logits, self._problem).round(6).tolist(), strict=True):
                one["probabilities"] = dict(zip(self.labels, shares, strict=True))
        return found

    def _tagged(self, sentences: list[list[str]]) -> Iterator[dict[str, Any]]:
        assert self._words is not None
        for start in range(0, len(sentences), _TEXTS_AT_ONCE):
            part = sentences[start : start + _TEXTS_AT_ONCE]
            encodings = self._words.sequences(part, self.threads > 1)
            places = [first_tokens(of.word_ids, len(words)) for of, words in zip(encodings, part, strict=True)]
            yield from ({"tags": tags} for tags in tags_of(self._per_token(encodings), places, self.labels))

    def _answered(self, questions: Sequence[str], contexts: Sequence[str]) -> Iterator[dict[str, Any]]:
        assert self._windows is not None
        for start in range(0, len(questions), _TEXTS_AT_ONCE):
            part = slice(start, start + _TEXTS_AT_ONCE)
            windows, places = self._windows.cut(questions[part], contexts[part], self.threads > 1)
            for context, span in zip(contexts[part], spans(self._per_token(windows), places), strict=True):
                yield {
                    "answer": context[span.start : span.end],
                    "score": round(span.probability, 6),
                    "no_answer_score": round(span.none_probability, 6),
                }

    def _per_token(self, encodings: Sequence[Any]) -> list[np.ndarray]:
        """The answers at the tokens of every sequence, each (tokens, outputs)."""
        return [of for output, offsets in self._outputs(encodings) for of in _split(output.answers, offsets)]


def _split(rows: np.ndarray | None, offsets: np.ndarray) -> list[np.ndarray]:
    """The rows of every sequence."""
    assert rows is not None
    return np.split(rows, offsets[1:-1])


def _kind(config: dict[str, Any]) -> str:
    name = str((config.get("architectures") or [""])[0])
    return next((kind for ending, kind in _KINDS.items() if name.endswith(ending)), EMBEDDINGS)


def _labels(folder: Path, config: dict[str, Any], outputs: int) -> tuple[str, ...]:
    """The names of a model's labels, which differ."""
    given = config.get("id2label")
    labels = tuple(f"LABEL_{index}" for index in range(outputs)) if given is None else label_names(given)
    if len(set(labels)) < outputs:
        raise TrituneError(
            f"{folder}: id2label in its config.json must give each label from 0 to {outputs - 1} a name of its own"
        )
    return labels


def _max_length(folder: Path, kind: str, settings: Settings, tokenizer: dict[str, Any]) -> int:
    """Tokens to read of a text, as far as the files say."""
    if settings.contents:
        length = settings.max_length or tokenizer.get("model_max_length")
    else:
        found = _MAX_LENGTH.search(_recipe_text(folder))
        length = int(found[1]) if found else None
    return length if isinstance(length, int) and length > 0 else _USUAL_LENGTHS[kind]


def _recipe_text(folder: Path) -> str:
    return (_content(folder / _RECIPE) or b"").decode(errors="replace")


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if path.is_file() else None
    except OSError as error:
        raise TrituneError(f"{path}: cannot be read ({error.strerror})") from None


def _check_texts(texts: Sequence[str], pairs: Sequence[str] | None) -> None:
    for name, values in (("texts", texts), ("pairs", pairs)):
        if isinstance(values, str):
            raise TrituneError(f"{name} must be a list of texts, got one text; put it into a list")
        for number, text in enumerate(() if values is None else values):
            _check_text(text, f"{name}[{number}]")
    if pairs is not None and len(pairs) != len(texts):
        raise TrituneError(f"{len(texts)} texts and {len(pairs)} pairs; every text needs its own")


def _check_text(text: Any, where: str) -> None:
    if not isinstance(text, str):
        raise TrituneError(f"{where}: must be text, found {shown(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TrituneError(
            f"{where}: is no valid Unicode at character {error.start}; remove what stands there"
        ) from None


def _words(text: Any, number: int) -> list[str]:
    words = text.split() if isinstance(text, str) else text
    if not isinstance(words, list | tuple) or not words:
        raise TrituneError(f"texts[{number}]: must hold words, found {shown(text)}")
    for word in words:
        _check_text(word, f"texts[{number}]")
    return list(words)
