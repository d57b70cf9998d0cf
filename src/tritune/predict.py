"""Answers of a trained model for texts and images that have no labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit
from transformers import PreTrainedModel

from .devices import this_process
from .distill import MULTI_LABEL
from .errors import TrituneError
from .evaluate import predict, recipe_in_force
from .heads import IMAGE_CLASSIFICATION, TEXT_CLASSIFICATION, Head, head_of
from .heads.image_classification import as_pixels
from .heads.images import unlabelled
from .heads.text import check_room, collator, text_of
from .heads.text import text_columns as find_columns
from .load import load_classifier, load_config, load_pretrained, load_tokenizer
from .table import columns_of, listed
from .tasks import TASKS


def predict_rows(
    source: str | Path,
    rows: Sequence[dict[str, Any]],
    text_columns: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    probabilities: bool = False,
    name: str = "the table",
) -> list[dict[str, Any]]:
    """Rows with the model's answers beside them.

    Args:
        source: a run, a teacher, or any classifier: a folder or a hub name.
        rows: at least one, as `read_table` gives them.
        text_columns: one or two columns; None looks for those that the GLUE tasks use.
        overrides: `key=value` for the recipe beside the model.
        probabilities: add one column a label.
        name: what messages call the rows.

    Returns:
        The rows with `prediction`, a label's name, a list of the labels that are more likely than not where a row may
        have many, or a score, and with `probability_<label>` where asked for; those of other kinds of tasks with the
        columns that `Head.predictable` names.

    Raises:
        TrituneError: the model, a row or a column cannot be used.
    """
    head = head_of(load_config(source))
    if head is not TEXT_CLASSIFICATION:
        if probabilities:
            raise TrituneError(f"--probabilities: only for text classification; {source} is for {head.name}")
        return _predict_rows(head, source, rows, text_columns, overrides, name)
    columns = find_columns(columns_of(rows), text_columns, name)
    texts = [
        [text_of(row, column, f"{name}, row {number}") for number, row in enumerate(rows, 1)] for column in columns
    ]
    model = load_classifier(source)
    labels = _labels(model, source, probabilities)
    added = ["prediction", *(f"probability_{label}" for label in labels if probabilities)]
    if taken := [column for column in added if column in columns_of(rows)]:
        raise TrituneError(f"{name}: has {listed(taken)} already; rename or drop it")
    recipe = recipe_in_force(source, model, overrides)
    tokenizer = load_tokenizer(source, model, recipe.max_length)
    check_room(tokenizer, len(columns), recipe.max_length)
    encoded = tokenizer(*texts, truncation=True, max_length=recipe.max_length)
    examples = [{name: values[i] for name, values in encoded.items()} for i in range(len(rows))]
    collate = collator(tokenizer, recipe.padding, recipe.max_length)
    logits = predict(model.to(this_process().device), examples, collate, recipe.per_device_eval_batch_size)
    _check_finite(logits, source, name)
    answers = _label_sets if model.config.problem_type == MULTI_LABEL else _answers
    return [row | answer for row, answer in zip(rows, answers(labels, logits, probabilities), strict=True)]


def predict_images(
    source: str | Path, images: str | Path, overrides: Sequence[str] = (), probabilities: bool = False
) -> list[dict[str, Any]]:
    """The model's answers for images.

    Args:
        source: an image classifier: a run, a teacher, or any other; a folder or a hub name.
        images: a folder with images at any depth, one image file, or a parquet file.
        overrides: `key=value` for the recipe beside the model.
        probabilities: add one column a label.

    Returns:
        A row an image: `file` or, of a parquet file, `row`, counted from 1; `prediction`; `probability_<label>` where
        asked for.

    Raises:
        TrituneError: the model or an image cannot be used.
    """
    rows, names = unlabelled(images)
    head = IMAGE_CLASSIFICATION
    model = load_pretrained(head.auto_model, source)
    labels = _labels(model, source, probabilities)
    recipe = recipe_in_force(source, model, overrides)
    examples, collate = as_pixels(rows, head.load_processor(source, model, None))
    logits = predict(model.to(this_process().device), examples, collate, recipe.per_device_eval_batch_size)
    _check_finite(logits, source, str(images))
    return [row | answer for row, answer in zip(names, _answers(labels, logits, probabilities), strict=True)]


def _check_finite(logits: np.ndarray, source: str | Path, name: str) -> None:
    """Argmax of a NaN row is a label like any other."""
    if len(bad := np.flatnonzero(~np.isfinite(logits).all(-1))):
        raise TrituneError(f"{source}: answers row {bad[0] + 1} of {name} with NaN or infinite values; train it anew")


def _predict_rows(
    head: Head,
    source: str | Path,
    rows: Sequence[dict[str, Any]],
    columns: Sequence[str] | None,
    overrides: Sequence[str],
    name: str,
) -> list[dict[str, Any]]:
    """Rows with the answers of a model of any kind beside them."""
    model = load_pretrained(head.auto_model, source)
    # The table's lengths, where no recipe lies beside the model.
    known = next(task for task in TASKS.values() if task.head.name == head.name)
    recipe = recipe_in_force(source, model, overrides, known)
    processor = head.load_processor(source, model, recipe.max_length)
    asked = head.predictable(rows, columns, model, processor, recipe.max_length, recipe.padding, name)
    model.to(this_process().device)
    read = predict(model, asked.examples, asked.collate, recipe.per_device_eval_batch_size, head.read)
    answers = asked.answers(read)
    if taken := [column for column in columns_of(answers) if column in columns_of(rows)]:
        raise TrituneError(f"{name}: has {listed(taken)} already; rename or drop it")
    return [row | answer for row, answer in zip(rows, answers, strict=True)]


def _labels(model: PreTrainedModel, source: str | Path, probabilities: bool) -> list[str]:
    """The names of the labels in the order of the logits; none for a score."""
    if model.config.num_labels > 1 or model.config.problem_type == MULTI_LABEL:
        return [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
    if probabilities:
        raise TrituneError(f"--probabilities would change nothing: {source} gives a score, not labels")
    return []


def _answers(labels: Sequence[str], logits: np.ndarray, probabilities: bool) -> list[dict[str, Any]]:
    if not labels:
        return [{"prediction": float(score)} for score in logits[:, 0]]
    answers: list[dict[str, Any]] = [{"prediction": labels[index]} for index in logits.argmax(-1)]
    if probabilities:
        exponents = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
        shares = exponents / exponents.sum(-1, keepdims=True)
        for answer, row in zip(answers, shares, strict=True):
            answer |= _probabilities(labels, row)
    return answers


def _label_sets(labels: Sequence[str], logits: np.ndarray, probabilities: bool) -> list[dict[str, Any]]:
    """All labels whose sigmoid is above 0.5, in id order."""
    answers: list[dict[str, Any]] = [{"prediction": [labels[i] for i in np.flatnonzero(row > 0)]} for row in logits]
    if probabilities:
        for answer, row in zip(answers, expit(logits.astype(np.float64)), strict=True):
            answer |= _probabilities(labels, row)
    return answers


def _probabilities(labels: Sequence[str], shares: np.ndarray) -> dict[str, float]:
    return {f"probability_{name}": round(float(share), 6) for name, share in zip(labels, shares, strict=True)}
