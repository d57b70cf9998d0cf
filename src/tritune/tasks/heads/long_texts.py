"""Texts with more tokens than a model is given: cut at their end, or in their middle; `text_windows` cuts nothing."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ...errors import TrituneError

HEAD_TAIL = "head-tail"
WINDOW = "window"


def token_ids(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Sequence[str]],
    max_length: int | None,
    long_texts: str,
    name: str,
) -> dict[str, list]:
    """What a tokenizer returns for texts, `input_ids` etc., each (texts, tokens), none longer than `max_length`.

    Args:
        tokenizer: of the model.
        texts: one or two columns.
        max_length: tokens of a row, its special tokens among them.
        long_texts: `truncate`, what is beyond is left out; `head-tail`, what is in the middle (Sun et al., 2019, "How
            to Fine-Tune BERT for Text Classification?", section 5.3.1, there with a shorter head); `window`, which
            `text_windows` is for, what is beyond the first window.
        name: what messages call the texts.

    Raises:
        TrituneError: pairs of texts are to lose their middle.
    """
    if long_texts != HEAD_TAIL or max_length is None:
        return dict(tokenizer(*texts, truncation=True, max_length=max_length))
    if len(texts) != 1:
        raise TrituneError(f"{name}: long_texts head-tail is for single texts, these are pairs; take truncate")
    whole = dict(tokenizer(*texts, return_special_tokens_mask=True, verbose=False))
    kept = [both_ends(special, max_length) for special in whole.pop("special_tokens_mask")]
    return {
        key: [[row[place] for place in places] for row, places in zip(rows, kept, strict=True)]
        for key, rows in whole.items()
    }


def both_ends(special: Sequence[int], max_length: int) -> list[int]:
    """The places that are kept of a row: special tokens, and the first half and the last half of what else has room.

    Args:
        special: 1 at tokens that the tokenizer has added, (tokens,).
        max_length: at least the number of those.

    >>> both_ends([1, 0, 0, 0, 0, 0, 1], max_length=5)
    [0, 1, 2, 5, 6]
    """
    text = [place for place, added in enumerate(special) if not added]
    over = len(special) - max_length
    if over <= 0:
        return list(range(len(special)))
    head = (len(text) - over + 1) // 2
    left_out = {*text[head : head + over]}
    return [place for place in range(len(special)) if place not in left_out]
