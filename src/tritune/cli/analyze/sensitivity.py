"""`tritune analyze sensitivity`: which parts suffer from being quantized."""

from dataclasses import asdict, replace
from typing import Annotated, Any

import typer

from ...errors import TrituneError
from .. import options
from . import common


def sensitivity(
    model: Annotated[str, typer.Option(help="A student, or a teacher to quantize as --recipe says.", metavar="MODEL")],
    task: options.Task,
    data: options.Data = None,
    labels: options.Labels = None,
    recipe: Annotated[str, typer.Option(help="How a float MODEL is quantized: a recipe name or a YAML file.")] = "ti-g",
    rows: common.Rows = 200,
    overrides: options.Overrides = None,
    output: common.Output = None,
) -> None:
    """Score MODEL with one part quantized at a time, and with one left float; suggest a mixed-precision recipe.

    Nothing is trained. A part left float computes with the latent weights. The suggestion, a recipe.yaml for
    `tritune train`, leaves the part float that gains most by it.

    Example: `tritune analyze sensitivity --model teacher/ --task sst2 --data glue/SST-2`
    """
    from ...recipes import load_recipe, recipe_beside

    load_recipe(recipe)
    subjects, folder = common.begin(
        "sensitivity", options.Asked(task, labels), data, None, [model], rows, overrides, output
    )
    import numpy as np

    from ...analysis import sensitivity as analysis
    from ...analysis.sensitivity import plot_sensitivity, summarize_sensitivity
    from ...checkpoints.load import is_quantized
    from ...checkpoints.prepare import prepare
    from ...inference.evaluate import predict
    from ...modeling.quantization import Quantization
    from ...tasks.heads.text_classification import TextClassification
    from ...tasks.heads.text_windows import averaged, first_windows

    table_task = subjects.task
    if not isinstance(table_task.head, TextClassification):
        raise TrituneError(
            f"sensitivity scores rows one by one, which {table_task.title} cannot; take another analysis"
        )
    (student,) = subjects.models.values()
    trained = is_quantized(student)
    values = load_recipe((recipe_beside(model) if trained else None) or recipe)
    if not trained:
        prepare(student, values.section(Quantization))

    of_text = subjects.data.dev_inputs[: len(subjects.rows)]
    references = np.asarray(subjects.rows["labels"])[first_windows(of_text)]

    def score(candidate: Any) -> float:
        """The task's own metric on the rows, or on the texts that they are windows of."""
        logits = predict(candidate, subjects.rows, subjects.data.collate, subjects.batch_size, table_task.head.read)
        return table_task.measure(averaged(logits, of_text), references)[table_task.metric]

    result = analysis(student, score)
    common.finish("sensitivity", result, {"sensitivity": plot_sensitivity(result)}, folder, summarize_sensitivity)
    _suggest(result, values, folder)


def _suggest(result: Any, recipe: Any, folder: Any) -> None:
    """Write the suggested recipe, if there is one, and say what it is."""
    from ...recipes import to_yaml

    best = result.suggestion
    if best is None:
        typer.echo("No part left float scores better than everything quantized: there is nothing to suggest.")
        return
    value = tuple(best.value) if isinstance(best.value, list) else best.value
    mixed = replace(recipe, **{best.key: value, "name": f"{recipe.name}-mixed"})
    path = folder / "recipe.yaml"
    path.write_text(to_yaml(mixed), encoding="utf-8")
    shown = asdict(best)
    typer.echo(f"Suggested: {shown['key']}: {shown['value']} ({100 * best.score:.1f}); written to {path}")
