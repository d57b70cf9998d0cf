"""`tritune predict`: answers for texts of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from . import options


def predict(
    model: Annotated[str, typer.Argument(help="A run, a teacher or any fine-tuned model.", metavar="MODEL")],
    input: Annotated[
        str, typer.Option("--input", help="A .csv, .tsv, .jsonl or .txt file; - reads lines from standard input.")
    ] = "-",
    output: Annotated[
        Path | None, typer.Option("--output", help="A .csv, .tsv or .jsonl file; standard output (CSV) without it.")
    ] = None,
    text_columns: Annotated[
        str | None, typer.Option(help="The column of the text, or the two of a pair, with a comma between.")
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Add a column with each label's share.")
    ] = False,
    overrides: options.Overrides = None,
) -> None:
    """Write MODEL's answer beside every row of a file: the label's name, or a score.

    A line of plain text is one example; with a tab in it, a pair. With per-tensor activation scales (the papers'
    recipes) an answer may depend on the other rows of its batch.

    Examples: `tritune predict run/ --input reviews.csv --output answers.csv --probabilities`,
    `echo "what a film" | tritune predict run/`
    """
    options.quiet_libraries()
    from ..predict import predict_rows
    from ..table import check_writable, read_table, table_name, write_table

    if output is not None:
        check_writable(output)
    rows = read_table(input)
    if output is not None:
        check_writable(output, rows)
    columns = None if text_columns is None else [column.strip() for column in text_columns.split(",")]
    write_table(output, predict_rows(model, rows, columns, overrides or [], probabilities, table_name(input)))
