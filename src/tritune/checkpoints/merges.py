"""How BPE builds a token: the merges that make it, one after the other, out of characters."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any


class Merges:
    """The merges of a BPE model in the JSON of `tokenizers`.

    Args:
        model: the JSON's `model`, of type BPE.
    """

    def __init__(self, model: dict[str, Any]):
        self._prefix = model.get("continuing_subword_prefix") or ""
        self._suffix = model.get("end_of_word_suffix") or ""
        self._pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
        self._ranks = {pair: rank for rank, pair in enumerate(self._pairs)}

    def parts(self, token: str) -> set[str]:
        """Everything that occurs while BPE builds a token, from its characters to itself.

        BPE takes the merge of the lowest rank first, the leftmost of equal ones. A token of a longer word is built as
        it is alone, because no merge has crossed its borders. Empty for one that no merges make of characters.
        """
        symbols = self._characters(token)
        seen = set(symbols)
        while len(symbols) > 1:
            pairs = [(self._ranks[pair], at) for at, pair in enumerate(pairwise(symbols)) if pair in self._ranks]
            if not pairs:
                return set()
            _, at = min(pairs)
            symbols[at : at + 2] = [self._merged(symbols[at], symbols[at + 1])]
            seen.add(symbols[at])
        return seen

    def among(self, tokens: Iterable[str]) -> list[list[str]]:
        """The merges, in their order, whose parts and result are all among `tokens`."""
        kept = set(tokens)
        return [list(pair) for pair in self._pairs if {*pair, self._merged(*pair)} <= kept]

    def _characters(self, token: str) -> list[str]:
        """The symbols that a token is built of: its characters, marked as inside or at the end of a word."""
        inside = bool(self._prefix) and token.startswith(self._prefix) and token != self._prefix
        ends = bool(self._suffix) and token.endswith(self._suffix) and token != self._suffix
        text = token[len(self._prefix) if inside else 0 : len(token) - len(self._suffix) if ends else len(token)]
        symbols = [self._prefix * (inside or at > 0) + character for at, character in enumerate(text)]
        return [*symbols[:-1], *(last + self._suffix * ends for last in symbols[-1:])]

    def _merged(self, left: str, right: str) -> str:
        return left + right[len(self._prefix) :]
