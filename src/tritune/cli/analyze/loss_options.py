"""Options of the analyses that look at a loss: which models, which loss, which parameters."""

from typing import Annotated

import typer

Models = Annotated[
    list[str],
    typer.Option("--model", help="A model to look at, quantized or not; may be given often.", metavar="MODEL"),
]
LossTeacher = Annotated[
    str | None, typer.Option("--teacher", help="What a distillation loss compares with.", metavar="MODEL")
]
LossName = Annotated[
    str,
    typer.Option(
        "--loss", help="ground_truth (the task's own) or a distillation loss: logits, hidden_states, attention_map, …"
    ),
]
LossAverage = Annotated[
    str, typer.Option("--loss-average", help="Whether distillation losses average over padding: padded or valid.")
]
Patterns = Annotated[
    list[str] | None,
    typer.Option("--parameters", help="Only parameters of such names, `*.query.*` say; may be given often."),
]
