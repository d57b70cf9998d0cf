"""The model card of a run: README.md in its folder and on the hub."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, get_token, upload_file

from ..errors import TrituneError, first_line
from ..recipes import Recipe
from ..tasks.registry import Task

CARD = "README.md"

_TEXT = """\
# {title}

A ternary student of `{teacher}` with {weight_bits}-bit weights and {activation_bits}-bit activations, made by
quantization-aware training with distillation (recipe `{recipe}` of tritune) on {task}.

| model | {metric} | size |
|---|---|---|
{rows}

Trained for {steps} steps in {precision}. Scores are on the dev set, from one seed ({seed}); `best` was selected on that
same set, `last` was not. Sizes are computed from the bit widths; the weights here are the latent float ones, with which
training can be continued.

```python
{usage}
```

`metrics.json` holds all measurements, `recipe.yaml` the complete recipe.
"""


def model_card(metrics: dict[str, Any], task: Task, recipe: Recipe, name: str) -> ModelCard:
    """The card of a finished run, from its `metrics.json`; `name` is the folder or hub name that loads the model."""
    head, metric = task.head, metrics["metric"]
    labels = {"teacher": "teacher", "float_student": "float student", "untrained": "quantized, untrained"}
    rows = [
        f"| {label} | {100 * row[metric]:.1f} | {row.get('size_bytes', metrics['size_bytes']) / 1e6:.1f} MB |"
        for key, label in (labels | {"reconstructed": "reconstructed", "best": "best", "last": "last"}).items()
        if (row := metrics.get(key))
    ]
    result = EvalResult(
        task_type=head.name,
        dataset_type=task.repository or ("glue" if task.files is None else "custom"),
        dataset_name=task.title,
        metric_type=metric,
        metric_value=round(metrics["last"][metric], 4),
    )
    data = ModelCardData(
        model_name=Path(name).name,
        library_name=head.hub_library,
        pipeline_tag=head.pipeline_tag or head.name,
        tags=["tritune", "ternary", "quantization-aware-training"],
        eval_results=[result],
    )
    text = _TEXT.format(
        title=f"{Path(name).name}: {task.title}, {recipe.name}",
        teacher=metrics["teacher"]["path"],
        weight_bits=recipe.weight_bits or 32,
        activation_bits=recipe.activation_bits or 32,
        recipe=recipe.name,
        task=task.title,
        metric=metric.replace("_", " "),
        rows="\n".join(rows),
        seed=metrics["seed"],
        steps=sum(metrics["steps"].values()),
        precision=recipe.precision,
        usage=head.usage(name),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def check_login() -> None:
    """Raise TrituneError if there is no token to upload with, before any training."""
    if get_token() is None:
        raise TrituneError("--push-to-hub: not logged in; run `hf auth login` or set HF_TOKEN")


def push(folder: Path, metrics: dict[str, Any], task: Task, recipe: Recipe, name: str) -> None:
    """Upload the student of a run folder, its tokenizer or image processor, and its card to the hub repository `name`.

    Raises:
        TrituneError: the hub refuses or cannot be reached; the run folder is complete nevertheless.
    """
    kinds: tuple[Any, ...] = (task.head.auto_model, task.head.auto_processor)  # Auto classes have no common base
    try:
        for kind in kinds:
            kind.from_pretrained(folder).push_to_hub(name)
        for path, content in task.head.companions(folder).items():
            upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=name)
        model_card(metrics, task, recipe, name).push_to_hub(name)
    except Exception as error:
        raise TrituneError(
            f"--push-to-hub {name}: {first_line(error)}; {folder} is complete, and the push can be repeated"
        ) from None
