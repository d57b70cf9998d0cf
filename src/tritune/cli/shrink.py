"""`tritune shrink`: a smaller float model from some layers of a teacher, some of its tokens, or both."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import TrituneError
from . import options

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_IMAGE_PROCESSOR = "preprocessor_config.json"


def shrink(
    teacher: Annotated[str, typer.Argument(help="A float model: a folder or a hub name.", metavar="TEACHER")],
    output: options.Output,
    layers: Annotated[
        str | None, typer.Option(help="Layers to keep, counted from 0, in their new order.", metavar="LIST")
    ] = None,
    vocabulary: Annotated[
        list[Path] | None,
        typer.Option(
            help="Texts such as the model is for: .txt with a text per line, .csv, .tsv, .json, .jsonl or .parquet; "
            "may be repeated. Tokens that they do not use are left out.",
            metavar="FILE",
        ),
    ] = None,
    text_columns: Annotated[
        str | None,
        typer.Option(
            help="Columns of the texts, separated by commas; of each file those that it has. By default the usual "
            "names are tried.",
            metavar="NAMES",
        ),
    ] = None,
    min_count: Annotated[
        int, typer.Option(help="How often the texts use a token that is kept.", metavar="N", show_default=True)
    ] = 1,
    held_out: Annotated[
        Path | None,
        typer.Option(help="Other texts, to count the tokens that become unknown or are split.", metavar="FILE"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what `shrink` wrote there before.")] = False,
    json: options.Json = False,
) -> None:
    """Build a smaller float model from some layers of TEACHER, from the tokens that your texts use, or from both.

    With `--layers`, the model is shallower and is trained as the student of TEACHER: `tritune train TEACHER --student
    FOLDER`. With `--vocabulary`, its word embeddings and its tokenizer are smaller, and it is as good a teacher as
    before: `tritune train FOLDER`. Special tokens, bytes and single characters are kept, so other texts can still be
    written with it. Everything else stays: classifier, labels, pooling. The folder loads with plain transformers.

    Examples: `tritune shrink teacher/ --layers 1,3,5,7,9,11 --output skip/`

    `tritune shrink teacher/ --vocabulary train.tsv --held-out dev.tsv --output english/`
    """
    from ..training.run_folder import check_free

    _check(layers, vocabulary, text_columns, min_count, held_out)
    check_free(output, overwrite, inputs=(teacher, *(vocabulary or ()), *([held_out] if held_out else ())))
    options.begin(teacher)
    from ..checkpoints.load import load_float, load_tokenizer, weights_sha256
    from ..checkpoints.size import size_bytes
    from ..modeling.shrink import NOTE
    from ..modeling.shrink import shrink as shrunk
    from .show import show_result, show_shrunk

    columns = None if text_columns is None else options.comma_separated(text_columns)
    texts = _texts(vocabulary or [], columns)
    other_texts = _texts([held_out] if held_out else [], columns)
    model = load_float(teacher)
    has_text = model.main_input_name == "input_ids"
    tokenizer = load_tokenizer(teacher, model, max_length=1) if has_text else None
    made: dict[str, Any] = {
        "source": {"path": teacher, "sha256": weights_sha256(model), "size_bytes": size_bytes(model)}
    }
    if layers is not None:
        model = shrunk(model, _numbers(layers))
        made |= getattr(model.config, NOTE)
    if vocabulary:
        if tokenizer is None:
            raise TrituneError(f"{teacher}: takes no texts, so it has no vocabulary")
        model, tokenizer, found = _fewer_tokens(model, tokenizer, texts, min_count, other_texts)
        made |= {"vocabulary": {"files": list(map(str, vocabulary)), "min_count": min_count, **found}}
    made |= {
        "sha256": weights_sha256(model),
        "parameters": model.num_parameters(),
        "size_bytes": size_bytes(model),
    }
    _write(model, tokenizer, teacher, output, made)
    show_result(made | {"output": str(output)}, show_shrunk, as_json=json)


def _check(
    layers: str | None,
    vocabulary: list[Path] | None,
    text_columns: str | None,
    min_count: int,
    held_out: Path | None,
) -> None:
    if layers is None and not vocabulary:
        raise TrituneError("give --layers, --vocabulary, or both: what the model is to be made of")
    if not vocabulary and (text_columns is not None or min_count != 1 or held_out is not None):
        raise TrituneError("--text-columns, --min-count and --held-out are about texts; give some with --vocabulary")
    if min_count < 1:
        raise TrituneError(f"--min-count must be at least 1; got {min_count}")


def _numbers(text: str) -> list[Any]:
    """The numbers of a list; anything else stays text, for `tritune.shrink` to refuse."""
    parts = options.comma_separated(text) if text.strip() else []
    return [int(part) if part.isascii() and part.isdigit() and len(part) < 10 else part for part in parts]


def _texts(files: Sequence[Path], columns: list[str] | None) -> list[str]:
    """All texts of some files, whatever columns they have them in; blank ones are left out."""
    from ..tasks.heads.text import text_columns, text_of
    from ..tasks.table import columns_of, listed, placed, read_table

    texts = []
    for file in files:
        rows = read_table(file)
        present = columns_of(rows)
        wanted = columns if columns is None else [column for column in columns if column in present]
        if wanted == []:
            raise TrituneError(f"{file}: no column {listed(columns or ())}; there are {listed(present)}")
        for column in text_columns(present, None, str(file)) if wanted is None else wanted:
            cells = ((row, where) for where, row in placed(rows, str(file)) if row.get(column) not in (None, ""))
            texts += [text_of(row, column, where, may_be_empty=True) for row, where in cells]
    return texts


def _fewer_tokens(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: list[str],
    min_count: int,
    other_texts: list[str],
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase", dict[str, Any]]:
    """A model and tokenizer with the tokens of `texts`, and what became of those of `other_texts`."""
    from ..checkpoints.vocabulary import compare_vocabularies, shrink_vocabulary

    small, fewer = shrink_vocabulary(model, tokenizer, texts, min_count)
    found: dict[str, Any] = {"texts": len(texts), "tokens": len(fewer), "of": len(tokenizer)}
    if other_texts:
        found["held_out"] = asdict(compare_vocabularies(tokenizer, fewer, other_texts))
    return small, fewer, found


def _write(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None",
    source: str,
    output: Path,
    made: dict[str, Any],
) -> None:
    """Write the model and its tokenizer or image processor, all of it or nothing."""
    from transformers.utils import cached_file

    from ..checkpoints.files import replace_folder
    from ..checkpoints.hub import located
    from ..tasks.heads.sentence_files import read_sentence_files
    from ..training.run_folder import SHRUNK, write_json

    missing_is_fine = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    processor = cached_file(located(source), _IMAGE_PROCESSOR, **missing_is_fine) if tokenizer is None else None
    sentence_files = read_sentence_files(source) if tokenizer is not None and model.base_model is model else None
    with replace_folder(output) as folder:
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if sentence_files is not None:
            sentence_files.write(folder)
        if processor is not None:
            shutil.copyfile(processor, folder / _IMAGE_PROCESSOR)
        write_json(folder / SHRUNK, made)
