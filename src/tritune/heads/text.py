"""From texts to token ids, and from rows to padded batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from ..errors import TrituneError

# Tokenizing fewer rows than this takes about a second: a bar would only be noise.
_ROWS_WORTH_A_BAR = 20_000


@contextmanager
def _bar_only_for(rows: int) -> Iterator[None]:
    """Silences the datasets progress bar for small sets; the setting is global, so it is put back."""
    silence = rows < _ROWS_WORTH_A_BAR and not datasets.are_progress_bars_disabled()
    if silence:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if silence:
            datasets.enable_progress_bars()


def check_room(tokenizer: PreTrainedTokenizerBase, texts: int, max_length: int) -> None:
    """Raise TrituneError if `max_length` leaves no room beside the special tokens of one text or a pair of `texts`."""
    special = tokenizer.num_special_tokens_to_add(pair=texts == 2)
    if max_length <= special:
        raise TrituneError(f"max_length {max_length} leaves no room for text: {special} tokens are special ones")


def encode(dataset: Dataset, task: Any, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Token ids of every row, truncated to `max_length` and not padded, in memory.

    The texts are replaced by what the tokenizer returns (`input_ids` etc., each `(length,)`), `label`, where there is
    one, becomes `labels`.

    Raises TrituneError if `max_length` leaves no room for text beside the special tokens.
    """
    check_room(tokenizer, len(task.text_columns), max_length)

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        """Columns of texts to columns of token ids."""
        texts = [batch[column] for column in task.text_columns]
        return dict(tokenizer(*texts, truncation=True, max_length=max_length))

    with _bar_only_for(len(dataset)):
        encoded = dataset.map(
            tokenize, batched=True, remove_columns=list(task.text_columns), keep_in_memory=True, desc=task.title
        )
    return encoded.rename_column("label", "labels") if "label" in encoded.column_names else encoded


def collator(tokenizer: PreTrainedTokenizerBase, padding: str, max_length: int) -> DataCollatorWithPadding:
    """A function from encoded rows to a batch of tensors `(batch, length)`.

    `padding` is "max_length" (every batch is `max_length` long, as in the published runs) or "longest".

    Raises TrituneError for another `padding` and for a tokenizer without a padding token.
    """
    if padding not in ("max_length", "longest"):
        raise TrituneError(f"padding must be 'max_length' or 'longest', not {padding!r}")
    if tokenizer.pad_token is None:
        raise TrituneError(f"{type(tokenizer).__name__} has no padding token: set tokenizer.pad_token")
    length = max_length if padding == "max_length" else None
    return DataCollatorWithPadding(tokenizer, padding=padding, max_length=length)
