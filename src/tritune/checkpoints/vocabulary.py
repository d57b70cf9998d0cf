"""`shrink_vocabulary`: a model and its tokenizer with only the tokens that some texts use."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Encoding, Tokenizer
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import TrituneError, first_line, shown
from ..modeling.anatomy import unsupported, word_embedding_of
from ..modeling.rebuild import check_float
from ..modeling.token_rows import keep_token_rows, needed_rows
from .tokenizer_json import kept_tokens, tokens_of, unknown_id, with_tokens

_TEXTS_AT_ONCE = 1000


def shrink_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], min_count: int = 1
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A new model and its tokenizer with the tokens that `texts` use, and those that no tokenizer can do without.

    These are special and added tokens, bytes, single characters (of the texts, and of Latin-1), and for BPE what a
    token is merged from. A text that needs none of the tokens left out is cut into the same tokens as before, and the
    new model computes the same for it, bit for bit. Other texts are cut into more tokens; a character without a token
    becomes unknown.

    Args:
        model: a float model; it stays as it is.
        tokenizer: its fast tokenizer; it stays as it is.
        texts: such as the model is for, the more the better.
        min_count: how often the texts use a token that is kept.

    Returns:
        The model, in evaluation mode, and the tokenizer. Their tokens are numbered anew, in the same order.

    Raises:
        UnsupportedModelError: the model has no table of token embeddings, or no key of its config sets its length.
        TrituneError: the model is quantized, the tokenizer is not a fast one or does not belong to the model, or the
            texts have no tokens.
    """
    check_float(model)
    if (embedding := word_embedding_of(model)) is None:
        raise unsupported(model, "it has no table of token embeddings")
    if min_count < 1:
        raise TrituneError(f"min_count must be at least 1, got {min_count}")
    backend = _backend(tokenizer)
    content = _content(tokenizer)
    if max(tokens_of(content), default=0) >= embedding.num_embeddings:
        raise TrituneError(
            f"the tokenizer has ids up to {max(tokens_of(content))} and the model's embedding only "
            f"{embedding.num_embeddings} rows; they do not belong together"
        )
    counts: Counter[int] = Counter()
    for encoding in _encoded(backend, texts):
        counts.update(encoding.ids)
    if not counts:
        raise TrituneError("the texts have no tokens; give texts such as the model is for")
    rows = kept_tokens(content, counts, min_count, needed_rows(model))
    small = keep_token_rows(model, rows)
    return small, _rebuilt(tokenizer, small, with_tokens(content, rows))


@dataclass(frozen=True)
class Coverage:
    """What becomes of the tokens of some texts where a tokenizer has fewer of them.

    Attributes:
        texts: how many there are.
        tokens: what the larger vocabulary makes of them, without special tokens.
        unknown_before: of these, those that are unknown to begin with.
        unknown: of the others, those in which the smaller one has an unknown token.
        split: those that the smaller one cuts in another way.
        tokens_after: what the smaller one makes of all texts.
    """

    texts: int
    tokens: int
    unknown_before: int
    unknown: int
    split: int
    tokens_after: int


def compare_vocabularies(
    before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase, texts: Iterable[str]
) -> Coverage:
    """How `texts` fare with the tokenizer that `shrink_vocabulary` made of another one.

    Raises:
        TrituneError: a tokenizer is not a fast one.
    """
    large, small = _backend(before), _backend(after)
    unknown = [unknown_id(_content(tokenizer)) for tokenizer in (before, after)]
    sums: Counter[str] = Counter()
    listed = list(texts)
    for one, other in zip(_encoded(large, listed), _encoded(small, listed), strict=True):
        same = Counter(zip(other.tokens, other.offsets, strict=True))
        lost = [span for index, span in zip(other.ids, other.offsets, strict=True) if index == unknown[1]]
        sums.update(texts=1, tokens=len(one.ids), tokens_after=len(other.ids))
        for index, token, (start, end) in zip(one.ids, one.tokens, one.offsets, strict=True):
            if index == unknown[0]:
                sums["unknown_before"] += 1
            elif not same[token, (start, end)]:
                sums["unknown" if any(start < stop and begin < end for begin, stop in lost) else "split"] += 1
    return Coverage(**{name: sums[name] for name in Coverage.__dataclass_fields__})


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of what a fast tokenizer works with, which neither truncates nor pads."""
    if not tokenizer.is_fast:
        raise TrituneError(
            f"{type(tokenizer).__name__} is a slow tokenizer; its vocabulary can be shrunk where a fast one "
            "(a tokenizer.json) lies beside the model"
        )
    backend = Tokenizer.from_str(json.dumps(_content(tokenizer)))
    backend.no_truncation()
    backend.no_padding()
    return backend


def _content(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return json.loads(tokenizer.backend_tokenizer.to_str())


def _encoded(backend: Tokenizer, texts: Iterable[str]) -> Iterator[Encoding]:
    """The tokens of texts, without special ones around them."""
    rest = iter(texts)
    while some := list(islice(rest, _TEXTS_AT_ONCE)):
        try:
            yield from backend.encode_batch(some, add_special_tokens=False)
        except Exception as error:  # of no class of its own
            raise TrituneError(f"the tokenizer cannot read a text ({first_line(error)})") from None


def _rebuilt(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, content: dict[str, Any]
) -> PreTrainedTokenizerBase:
    """A tokenizer as transformers loads it from the folder of a model.

    That is how all others will get it: its classes rebuild parts of a tokenizer from its vocabulary.
    """
    with TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        rebuilt = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    rebuilt.name_or_path = tokenizer.name_or_path
    wanted = {token: index for index, token in tokens_of(content).items()}
    if (found := rebuilt.get_vocab()) != wanted:
        odd = sorted(token for token in found.keys() | wanted.keys() if found.get(token) != wanted.get(token))
        raise TrituneError(
            f"the vocabulary of {type(tokenizer).__name__} cannot be shrunk: {shown(odd[0])} would not have its number"
        )
    return rebuilt
