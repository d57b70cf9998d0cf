"""The JSON of a tokenizer (`tokenizer.json`, of the `tokenizers` library) with fewer tokens.

A smaller vocabulary must not change how a text is cut that needs none of the tokens left out. WordPiece takes the
longest match and Unigram the best path, and both stay what they were when other tokens go. BPE builds a token by
merges, so what it is built of stays, too. The score that Unigram gives an unknown character lies a constant below the
lowest of all tokens, so the token that has it stays.
"""

import copy
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from .merges import Merges

# Kept wherever they have a token of their own: ASCII and Latin-1, as they are and as NFKC writes them, and the space of
# SentencePiece. With the characters of the texts they are enough to spell words of the same language, and cost few rows
# (all single characters of XLM-R would be thousands).
_LATIN = "".join(map(chr, range(256)))
_ALWAYS = frozenset(f"{_LATIN}{unicodedata.normalize('NFKC', _LATIN)}▁")


def tokens_of(content: Mapping[str, Any]) -> dict[int, str]:
    """Ids and their tokens, those that were added to the vocabulary among them."""
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, list):
        tokens = {index: token for index, (token, _) in enumerate(vocabulary)}
    else:
        tokens = {index: token for token, index in vocabulary.items()}
    return tokens | {added["id"]: added["content"] for added in content["added_tokens"]}


def kept_tokens(
    content: Mapping[str, Any], counts: Mapping[int, int], min_count: int = 1, needed: Collection[int] = ()
) -> list[int]:
    """The ids that stay, ascending.

    They are those that the texts use, special and added tokens, bytes, single characters, and what those are built of.
    The single characters are those of ASCII, Latin-1 and of the tokens that the texts use at least once, or all of
    them in a tokenizer that has no other way to say that it does not know one.

    Args:
        content: the JSON of the tokenizer.
        counts: how often the texts use a token, by id.
        min_count: of a token that stays.
        needed: ids that stay in any case, with a token or without one.
    """
    tokens, model = tokens_of(content), content["model"]
    ids = {token: index for index, token in sorted(tokens.items(), reverse=True)}
    kept = {index for index, count in counts.items() if count >= min_count}
    kept |= {index for index in (*_special(content, ids), *needed) if index in tokens}
    byte_tokens = {ids[token] for token in _bytes(content) if token in ids}
    used = _ALWAYS.union(*(tokens[index] for index in counts))
    everything = _unknown(model, ids) is None and not byte_tokens
    characters = {index: _alone(token, model) for index, token in tokens.items()}
    kept |= byte_tokens | {
        index for index, one in characters.items() if one is not None and (everything or one in used)
    }
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        kept.add(scores.index(min(scores)))
    if model["type"] == "BPE":
        merges = Merges(model)
        kept |= {ids[part] for index in tuple(kept) for part in merges.parts(tokens[index])}
    return sorted(kept | set(needed))


def with_tokens(content: Mapping[str, Any], kept: Collection[int]) -> dict[str, Any]:
    """The JSON of the tokenizer that has only the tokens `kept`, numbered anew in the order given."""
    smaller: dict[str, Any] = copy.deepcopy(dict(content))
    place = {index: new for new, index in enumerate(kept)}
    model = smaller["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in place]
    else:
        model["vocab"] = {token: place[index] for token, index in model["vocab"].items() if index in place}
    if model.get("unk_id") is not None:
        model["unk_id"] = place[model["unk_id"]]
    if model["type"] == "BPE":
        model["merges"] = Merges(model).among(model["vocab"])
    for added in smaller["added_tokens"]:
        added["id"] = place[added["id"]]

    def moved(index: int) -> int:
        return place.get(index, index)

    if smaller["padding"] is not None:
        smaller["padding"]["pad_id"] = moved(smaller["padding"]["pad_id"])
    for processor in _processors(smaller["post_processor"]):
        for token in processor.get("special_tokens", {}).values():
            token["ids"] = list(map(moved, token["ids"]))
        for name in ("cls", "sep"):
            if name in processor:
                processor[name][1] = moved(processor[name][1])
    return smaller


def unknown_id(content: Mapping[str, Any]) -> int | None:
    """The id of the token that stands for what a tokenizer does not know, if it has one."""
    return _unknown(content["model"], {token: index for index, token in tokens_of(content).items()})


def _unknown(model: Mapping[str, Any], ids: Mapping[str, int]) -> int | None:
    return model["unk_id"] if "unk_id" in model else ids.get(model["unk_token"] or "")


def _special(content: Mapping[str, Any], ids: Mapping[str, int]) -> Iterator[int]:
    """The ids that other parts of the tokenizer name."""
    yield from (added["id"] for added in content["added_tokens"])
    if (unknown := _unknown(content["model"], ids)) is not None:
        yield unknown
    if content["padding"] is not None:
        yield content["padding"]["pad_id"]
    for processor in _processors(content["post_processor"]):
        yield from (index for token in processor.get("special_tokens", {}).values() for index in token["ids"])
        yield from (processor[name][1] for name in ("cls", "sep") if name in processor)


def _processors(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A post-processor and those that it consists of."""
    if part is not None:
        yield part
        for inner in part.get("processors", ()):
            yield from _processors(inner)


def _bytes(content: Mapping[str, Any]) -> list[str]:
    """The tokens that a tokenizer writes bytes as, where it does."""
    if content["model"].get("byte_fallback"):
        return [f"<0x{value:02X}>" for value in range(256)]
    return ByteLevel.alphabet() if _has_type([content["normalizer"], content["pre_tokenizer"]], "ByteLevel") else []


def _has_type(part: Any, name: str) -> bool:
    if isinstance(part, dict):
        return part.get("type") == name or _has_type(list(part.values()), name)
    return isinstance(part, list) and any(_has_type(inner, name) for inner in part)


def _alone(token: str, model: Mapping[str, Any]) -> str | None:
    """The character that a token is, at whatever place in a word; None for longer ones."""
    inner = token.removeprefix(model.get("continuing_subword_prefix") or "")
    shorter = inner.removesuffix(model.get("end_of_word_suffix") or "")
    return next((text for text in (token, inner, shorter) if len(text) == 1), None)
