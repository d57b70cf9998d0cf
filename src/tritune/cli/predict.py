"""`tritune predict`: predictions for your own texts or images."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import TrituneError
from . import options


def predict(
    model: Annotated[str, typer.Argument(help="A run, a teacher or any fine-tuned model.", metavar="MODEL")],
    input: Annotated[
        str,
        typer.Option(
            "--input",
            help="A .csv, .tsv, .json, .jsonl, .parquet or .txt file; - reads standard input. For images: a folder, an "
            "image or a .parquet file.",
        ),
    ] = "-",
    output: Annotated[
        Path | None, typer.Option("--output", help="A .csv, .tsv or .jsonl file; by default CSV on standard output.")
    ] = None,
    text_columns: Annotated[
        str | None,
        typer.Option(
            help="Column of the text or of the words, or both columns of a pair or question, separated by a comma."
        ),
    ] = None,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Add the probability of every label; for texts and images."),
    ] = False,
    overrides: options.Overrides = None,
) -> None:
    """Write MODEL's prediction next to every row of a file: the label's name, or a score.

    For multi-label models, all labels more likely than not: names separated by `|`, in .jsonl a list. For questions the
    `answer` and its score, for words their `tags`.

    A line of plain text is one example; a tab separates the two texts of a pair. With per-tensor activation scales (the
    papers' recipes) a prediction may depend on the other rows of its batch. Images are identified by `file` or `row`.

    Examples: `tritune predict run/ --input reviews.csv --output answers.csv --probabilities`,
    `echo "what a film" | tritune predict run/`
    """
    from ..recipes import check_evaluation_keys
    from ..tasks.table import check_writable, read_table, table_name, write_table

    check_evaluation_keys(overrides or [])
    if output is not None:
        check_writable(output)
    options.begin(model)
    from ..checkpoints.load import load_config
    from ..inference.predict import predict_images, predict_rows
    from ..tasks.heads import IMAGE_CLASSIFICATION, head_of

    if head_of(load_config(model)) is IMAGE_CLASSIFICATION:
        if input == "-" or text_columns is not None:
            raise TrituneError(f"{model}: takes images: give --input a folder, an image or a .parquet file, no columns")
        write_table(output, predict_images(model, input, overrides or [], probabilities))
        return
    rows = read_table(input)
    if output is not None:
        check_writable(output, rows)
    columns = None if text_columns is None else options.comma_separated(text_columns)
    answers = predict_rows(model, rows, columns, overrides or [], probabilities, table_name(input))
    if output is None or output.suffix.lower() in (".csv", ".tsv"):
        # As training files write several labels.
        for answer in answers:
            if isinstance(answer.get("prediction"), list):
                answer["prediction"] = "|".join(answer["prediction"])
    write_table(output, answers)
