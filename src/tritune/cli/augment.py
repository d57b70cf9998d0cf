"""`tritune augment`: a training file with variants of its rows."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import TrituneError
from . import options


def augment(
    task: options.Task,
    data: Annotated[Path, typer.Option(help="Folder of the task's tsv files; train.tsv is read.", metavar="FOLDER")],
    mlm: Annotated[str, typer.Option(help="Masked language model: a folder or a hub name.", metavar="MODEL")],
    glove: Annotated[
        Path | None,
        typer.Option(help="Word vectors in GloVe's format; by default MODEL's input embeddings.", metavar="FILE"),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Variants per text; by default the published number.")] = None,
    probability: Annotated[float, typer.Option(help="Probability of replacing each word.")] = 0.4,
    candidates: Annotated[int, typer.Option(help="Candidates for the replacement of a word.")] = 15,
    output: Annotated[
        Path | None, typer.Option(help="File to write; by default train_aug.tsv in the data folder.", metavar="FILE")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 42,
    batch_size: Annotated[int, typer.Option(help="Masked copies of a text per forward pass.")] = 64,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the file that an interrupted call began, if there is one.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Write every row of a task's train.tsv followed by variants with some words replaced, as TinyBERT does.

    With `--set augmented=true`, `finetune` and `train` read this file instead of train.tsv. Dev files are not changed.

    Example: `tritune augment --task mrpc --data glue/MRPC --mlm bert-base-uncased --glove glove.6B.300d.txt`
    """
    _check_numbers(n, probability, candidates, batch_size, seed)
    options.check_task(task)
    options.begin(mlm)
    from ..checkpoints.load import load_masked_lm, load_tokenizer, weights_sha256
    from ..compute.devices import this_process
    from ..tasks.data.augment import PAPER_VARIANTS, VARIANTS, Augmenter, MaskedWords, whole_words
    from ..tasks.data.augmented_file import open_output, write_augmented
    from ..tasks.data.neighbours import embedding_neighbours, glove_neighbours
    from ..tasks.registry import get_task
    from ..tasks.task_file import content_sha256
    from .show import show_augmented, show_result

    file = open_output(get_task(task), data, output, overwrite=overwrite, resume=resume)
    # The vectors are read first: that is soon done, and what may be wrong with them is said before a model is loaded.
    neighbours = None if glove is None else glove_neighbours(glove, candidates)
    model = load_masked_lm(mlm)
    tokenizer = load_tokenizer(mlm, model, max_length=1)
    words = whole_words(tokenizer)
    settings = {
        "mlm_sha256": weights_sha256(model),
        "glove_sha256": None if glove is None else content_sha256(glove),
        "probability": probability,
        "candidates": candidates,
    }
    neighbours = neighbours or embedding_neighbours(model, tokenizer, words, candidates)
    masked = MaskedWords(model.to(this_process().device), tokenizer, words, candidates, batch_size)
    count = n or VARIANTS.get(file.task.name, PAPER_VARIANTS)
    augmenter = Augmenter(masked, neighbours, probability)
    record = write_augmented(file, augmenter, count, seed, settings, resume=resume)
    show_result({"output": str(file.path), **record}, show_augmented, as_json=json)


def _check_numbers(n: int | None, probability: float, candidates: int, batch_size: int, seed: int) -> None:
    for name, value in (("n", n), ("candidates", candidates), ("batch-size", batch_size)):
        if value is not None and value < 1:
            raise TrituneError(f"--{name} must be at least 1; got {value}")
    if not 0 <= probability <= 1:
        raise TrituneError(f"--probability must be from 0 to 1; got {probability}")
    if not 0 <= seed < 2**32:
        raise TrituneError(f"--seed must be a whole number from 0 to 2^32 - 1; got {seed}")
