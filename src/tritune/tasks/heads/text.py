"""From rows of a table to texts, from texts to token ids, and from rows to padded batches."""

from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from ...errors import TrituneError
from ...progress import stage
from ..bars import without_bars
from ..table import listed, number_in, placed
from .long_texts import token_ids

# The columns that are looked for, in this order, where nobody names any.
_KNOWN_COLUMNS: tuple[tuple[str, ...], ...] = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text", "text_pair"),
    ("sentence",),
    ("text",),
)


def tokenized(rows: Dataset, tokenize: Callable[..., dict[str, list]], columns: Sequence[str], title: str) -> Dataset:
    """Rows, in memory, with what `tokenize(batch, row numbers)` makes of each batch in place of `columns`.

    `title` is that of its progress.
    """
    with without_bars(), stage(f"tokenize for {title}", len(rows), "rows", delay=3) as shown:

        def told(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
            """The same, and it is told how many rows are done."""
            made = tokenize(batch, numbers)
            shown.advance(len(numbers))
            return made

        options = {"batched": True, "with_indices": True, "keep_in_memory": True}
        # A fingerprint made of the function would be made of its progress, too.
        options["new_fingerprint"] = generate_random_fingerprint()
        return rows.map(told, remove_columns=list(columns), **options)


def text_columns(present: Sequence[str], wanted: Sequence[str] | None, name: str) -> tuple[str, ...]:
    """The one or two columns of a table that hold the texts: those wanted, those that GLUE uses, or the only one.

    Raises TrituneError, naming the table, if a column is missing or nothing says which it is.
    """
    if wanted is not None:
        if not 1 <= len(wanted) <= 2:
            raise TrituneError(f"--text-columns takes one or two columns, got {listed(wanted)}")
        if missing := [column for column in wanted if column not in present]:
            raise TrituneError(f"{name}: no column {listed(missing)}; there are {listed(present)}")
        return tuple(wanted)
    if not present:
        raise TrituneError(f"{name}: there is no column for the text")
    known = [columns for columns in _KNOWN_COLUMNS if set(columns) <= set(present)]
    if not known and len(present) > 1:
        raise TrituneError(f"{name}: say with --text-columns which of {listed(present)} hold the text")
    return known[0] if known else tuple(present)


def text_of(row: dict[str, Any], column: str, where: str, *, may_be_empty: bool = False) -> str:
    """The text in one cell; TrituneError, naming `where`, for a cell that holds something else."""
    value = row.get(column)
    if not isinstance(value, str) or not (may_be_empty or value.strip()):
        found = "nothing" if value in (None, "") else listed([value])
        raise TrituneError(f"{where}: {listed([column])} must be text, found {found}; fill it in or drop the row")
    return value


def training_texts(rows: Sequence[dict[str, Any]], column: str, name: str) -> list[str]:
    """The texts of a column to learn from; TrituneError, naming the row, if one is missing or all are numbers."""
    empty = [number for number, row in enumerate(rows, 1) if row.get(column) is None or not str(row[column]).strip()]
    if empty:
        raise TrituneError(
            f"{name}, row {empty[0]}: {column!r} is empty, as in {len(empty)} of {len(rows)} rows; fill it in or drop "
            "the row"
        )
    texts = [text_of(row, column, where) for where, row in placed(rows, name)]
    if all(number_in(text) is not None for text in texts):
        raise TrituneError(f"{name}, row 1: {column!r} holds numbers ({texts[0]}), not text; name the text's column")
    return texts


def check_room(tokenizer: PreTrainedTokenizerBase, texts: int, max_length: int | None) -> None:
    """Raise TrituneError if `max_length` leaves no room beside the special tokens of one or two `texts`."""
    special = tokenizer.num_special_tokens_to_add(pair=texts == 2)
    if max_length is not None and max_length <= special:
        raise TrituneError(f"max_length {max_length} leaves no room for text beside {special} special tokens")


def token_by_token(tokenizer: PreTrainedTokenizerBase, source: object) -> PreTrainedTokenizerBase:
    """A tokenizer for answers at tokens; it pads on the right, so that a token has the same place in every batch.

    Raises TrituneError if it has no character offsets.
    """
    if not tokenizer.is_fast:
        raise TrituneError(
            f"{source}: {type(tokenizer).__name__} is a slow tokenizer, without character offsets; save the fast one "
            "(a tokenizer.json) beside the model"
        )
    tokenizer.padding_side = "right"
    return tokenizer


def encode(
    rows: Dataset,
    columns: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    title: str,
    long_texts: str = "truncate",
) -> Dataset:
    """Token ids of the texts in one or two columns, cut to `max_length` and not padded, in memory.

    The texts are replaced by what the tokenizer returns (`input_ids` etc., each `(length,)`); `label`, where there is
    one, becomes `labels`. `title` is that of the progress bar; `long_texts` says what is cut, see `token_ids`.

    Raises TrituneError if `max_length` leaves no room for text beside the special tokens, or as `token_ids` does.
    """
    check_room(tokenizer, len(columns), max_length)

    def tokenize(batch: dict[str, list], numbers: list[int]) -> dict[str, list]:
        """Columns of texts to columns of token ids."""
        texts = [batch[column] for column in columns]
        return token_ids(tokenizer, texts, max_length, long_texts, title)

    encoded = tokenized(rows, tokenize, columns, title)
    return encoded.rename_column("label", "labels") if "label" in encoded.column_names else encoded


def collator(tokenizer: PreTrainedTokenizerBase, padding: str, max_length: int | None) -> DataCollatorWithPadding:
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
