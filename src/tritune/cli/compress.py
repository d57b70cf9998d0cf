"""`tritune compress`: from one file to a model that ships."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import options


def compress(
    model: Annotated[
        str,
        typer.Argument(
            help="Pretrained model, or one fine-tuned for such data: a folder or a hub name.", metavar="MODEL"
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Rows: .csv or .tsv of any delimiter and encoding, .xlsx, .json, .jsonl or .parquet; .txt of texts, "
            "or of words and tags; a folder of images with one folder a class; or a data set on the hub.",
            metavar="FILE",
        ),
    ],
    output: Annotated[Path, typer.Option(help="Output folder, new or of the same command.", metavar="FOLDER")],
    text_columns: Annotated[
        str | None,
        typer.Option(
            "--text-columns",
            help="Column of the text, or both of a pair, separated by a comma. By default found by its name or by the "
            "length of its texts.",
            metavar="NAMES",
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(help="Column of the label. By default found by its name or by its few values.", metavar="NAME"),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(help="A column, such as a customer, whose rows stay in one part.", metavar="COLUMN"),
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="A column of dates: the newest rows are the test part.", metavar="COLUMN")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="How long it may take; fewer steps are done to fit.", metavar="N")
    ] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(
            help="Points that the student may lose on dev; beyond it, longer trained and larger students are tried. Of "
            "a sentence encoder without --eval, points of its cosine to the teacher.",
            metavar="POINTS",
        ),
    ] = None,
    max_bad_rows: Annotated[
        int | None,
        typer.Option(help="Rows that may be set aside, by default 1 % and at least one.", metavar="N"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the split and the training.")] = 42,
    balance: Annotated[
        Literal["none", "weights", "sampling"],
        typer.Option(
            help="Let rare classes count as much as frequent ones in the fine-tuning: their rows weigh more in the "
            "loss, or come more often."
        ),
    ] = "none",
    long: Annotated[
        Literal["truncate", "head-tail", "window"],
        typer.Option(
            help="What is kept of texts that are too long: their beginning, as much of both ends, or all, in windows."
        ),
    ] = "truncate",
    export: Annotated[
        Literal["onnx", "dense"] | None, typer.Option(help="Write the student for other runtimes, too.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what the file was taken for, and show the plan.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the compression in the folder.")] = False,
    task: Annotated[
        str | None,
        typer.Option(help="Kind of task, such as token-classification, if the file can be several.", metavar="KIND"),
    ] = None,
    eval: Annotated[
        Path | None,
        typer.Option(
            help="For a sentence encoder: a table of pairs of texts with scores. Half of it is the dev part, half the "
            "test part.",
            metavar="FILE",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Make a small model of one file: split, fine-tune, distil, pack, and score.

    The kind of task, encoding, delimiter, columns and labels are found out and said. A dev and a test part are split
    off, so that inputs that occur twice stay on one side. MODEL is fine-tuned unless it answers as the data asks.
    Length, batch and steps follow from the data and from steps measured on this machine; the plan is shown first. The
    table at the end compares teacher and student on the test part.

    The output folder holds `model/`, what ships; `teacher/`, `students/`, the parts in `data/`; `rows.csv`, the rows
    that were set aside and why; `report.html`, `sizes.png` and `metrics.json`. The same command goes on where it was
    stopped.

    Examples: `tritune compress bert-base-uncased --data tickets.csv --output small/ --minutes 30`, then
    `tritune predict small/model --input texts.txt`
    """
    from ..compression.request import Request, check

    columns = None if text_columns is None else tuple(options.comma_separated(text_columns))
    request = Request(
        model, data, columns, label_column, group, time, minutes, max_bad_rows, seed, balance, long, task, eval
    )
    check(max_loss, export)
    options.begin(model)
    from ..compression.compress import dry_run as plan_only
    from ..compression.compress import finished
    from ..compression.opened import opened_request
    from ..compression.result import table_of
    from .show import show_notes, show_result, show_table

    def say(line: str) -> None:
        """A line on stderr."""
        show_notes([line])

    opened = opened_request(request, say)
    if dry_run:
        plan = plan_only(opened, say)
        show_result(plan.as_dict() | {"stages": plan.stages}, lambda _: None, as_json=json)
        return
    made = finished(opened, output, max_loss, export, overwrite, say)
    header, *rows = table_of(made.metrics)
    note = f"95 % intervals in parentheses. Ships: {output}/model. Report: {output}/report.html"
    show_result(made.metrics, lambda _: show_table(header, rows, note), as_json=json)
