"""Predictions of a trained model for texts and images without labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoints.load import load_config, load_pretrained
from ..compute.devices import this_process
from ..errors import TrituneError
from ..tasks.heads import FEATURE_EXTRACTION, IMAGE_CLASSIFICATION, Head, head_of, head_of_class
from ..tasks.heads.answering import Answering
from ..tasks.heads.images import unlabelled
from ..tasks.table import columns_of, listed
from .evaluate import predict, recipe_in_force, usual_task

Rows = Sequence[dict[str, Any]]


def predict_rows(
    source: str | Path,
    rows: Rows,
    text_columns: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    probabilities: bool = False,
    name: str = "the table",
) -> list[dict[str, Any]]:
    """Rows with the model's predictions beside them.

    Args:
        source: a run, a teacher, or any fine-tuned model that reads text: a folder or a hub name.
        rows: at least one, as `read_table` gives them.
        text_columns: that hold the inputs; None looks for the usual ones.
        overrides: `key=value` for the recipe beside the model.
        probabilities: add one column per label.
        name: what messages call the rows.

    Returns:
        The rows with `prediction` (a label's name, a list of the labels that are more likely than not where a row may
        have many, or a score) and, where asked for, `probability_<label>`; other kinds of tasks have other columns.

    Raises:
        TrituneError: the model, a row or a column cannot be used.
    """
    head = answering_head(source)
    inputs = head.inputs(rows, text_columns, name)
    return _answered(head, source, inputs, rows, overrides, probabilities, name)


def answering_head(source: str | Path) -> Head:
    """The kind of task that a model answers, with what its folder says of it.

    A model without a head answers as a sentence encoder if it is a student, or has the files of one beside it.

    Raises:
        TrituneError: the source is not a model.
    """
    config = load_config(source)
    (name, *_) = config.architectures or [""]
    if name and head_of_class(name) is FEATURE_EXTRACTION:
        encoder = FEATURE_EXTRACTION.for_model(source)
        if encoder.files.contents or getattr(config, "quantization_config", None) is not None:
            return encoder
    return head_of(config).for_model(source)


def predict_images(
    source: str | Path, images: str | Path, overrides: Sequence[str] = (), probabilities: bool = False
) -> list[dict[str, Any]]:
    """The model's predictions for images.

    Args:
        source: an image classifier: a run, a teacher, or any other; a folder or a hub name.
        images: a folder with images at any depth, one image file, or a parquet file.
        overrides: `key=value` for the recipe beside the model.
        probabilities: add one column per label.

    Returns:
        One row per image: `file` or, of a parquet file, `row`, counted from 1; `prediction`; and, where asked for,
        `probability_<label>`.

    Raises:
        TrituneError: the model or an image cannot be used.
    """
    inputs, names = unlabelled(images)
    return _answered(IMAGE_CLASSIFICATION, source, inputs, names, overrides, probabilities, str(images))


def _answered(
    head: Head, source: str | Path, inputs: Any, rows: Rows, overrides: Sequence[str], probabilities: bool, name: str
) -> list[dict[str, Any]]:
    """The rows, each with the answer to its input beside it."""
    model = load_pretrained(head.auto_model, source)
    task = usual_task(head)
    recipe = recipe_in_force(source, model, overrides, task)
    processor = head.load_processor(source, model, recipe.max_length)
    answering = Answering(model, processor, recipe.max_length, recipe.padding, recipe.long_texts)
    asked = head.predictable(inputs, answering, name)
    shares = asked.shares if probabilities else None
    if probabilities and shares is None:
        raise TrituneError(f"--probabilities would change nothing: {source} gives no labels")
    shown = [f"probability_{label}" for label in asked.labels] if shares else []
    present = set(columns_of(rows))
    if taken := [column for column in (*asked.columns, *shown) if column in present]:
        raise TrituneError(f"{name}: has {listed(taken)} already; rename or drop it")
    model.to(this_process().device)
    batch_size = recipe.per_device_eval_batch_size or task.batch_size
    read = predict(model, asked.examples, asked.collate, batch_size, head.read)
    answered = [row | answer for row, answer in zip(rows, asked.answers(read), strict=True)]
    if shares:
        for row, of_labels in zip(answered, shares(read), strict=True):
            row |= {column: round(float(share), 6) for column, share in zip(shown, of_labels, strict=True)}
    return answered
