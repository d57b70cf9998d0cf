"""Answers of a trained model for texts that have no labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from .data.encode import collator
from .data.table import read_table
from .errors import TrituneError
from .evaluate import predict, recipe_in_force
from .load import load_classifier, load_tokenizer

# The columns that are looked for, in this order, where nobody names any.
_KNOWN_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text", "text_pair"),
    ("sentence",),
    ("text",),
)


def predict_file(
    source: str | Path,
    input_path: str | Path,
    text_columns: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
    probabilities: bool = False,
) -> list[dict[str, Any]]:
    """The rows of a file with the model's answers beside them.

    Args:
        source: a run, a teacher, or any classifier: a folder or a hub name.
        input_path: .csv, .tsv, .jsonl, .txt, or `-` for lines from standard input.
        text_columns: one or two columns; None looks for those that the GLUE tasks use.
        overrides: `key=value` for the recipe beside the model.
        probabilities: add one column a label.

    Returns:
        The rows with `prediction`, a label's name or a score, and with `probability_<label>` where asked for.

    Raises:
        TrituneError: model, file, a row or a column cannot be used.
    """
    rows = read_table(input_path)
    columns = _columns(rows, text_columns, input_path)
    model = load_classifier(source)
    recipe = recipe_in_force(source, model, overrides)
    tokenizer = load_tokenizer(source, model, recipe.max_length)
    texts = [[_text(row, column, number, input_path) for number, row in enumerate(rows, 1)] for column in columns]
    encoded = tokenizer(*texts, truncation=True, max_length=recipe.max_length)
    examples = [{name: values[i] for name, values in encoded.items()} for i in range(len(rows))]
    collate = collator(tokenizer, recipe.padding, recipe.max_length)
    logits = predict(model, examples, collate, recipe.per_device_eval_batch_size)
    return [row | answer for row, answer in zip(rows, _answers(model, logits, probabilities), strict=True)]


def _columns(rows: list[dict], wanted: Sequence[str] | None, path: str | Path) -> tuple[str, ...]:
    present = rows[0].keys()
    if wanted:
        if missing := [column for column in wanted if column not in present]:
            raise TrituneError(f"{path}: no column {', '.join(missing)}; the file has {', '.join(present)}")
        if len(wanted) > 2:
            raise TrituneError(f"--text-columns takes one or two columns, got {', '.join(wanted)}")
        return tuple(wanted)
    found = next((columns for columns in _KNOWN_COLUMNS if all(column in present for column in columns)), None)
    if found is None and len(present) == 1:
        found = tuple(present)
    if found is None:
        raise TrituneError(f"{path}: say with --text-columns which of {', '.join(present)} hold the text")
    return found


def _text(row: dict, column: str, number: int, path: str | Path) -> str:
    if not isinstance(row.get(column), str):
        raise TrituneError(f"{path}, row {number}: {column} holds no text")
    return row[column]


def _answers(model: PreTrainedModel, logits: np.ndarray, probabilities: bool) -> list[dict[str, Any]]:
    if model.config.num_labels == 1:
        return [{"prediction": float(score)} for score in logits[:, 0]]
    names = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
    answers: list[dict[str, Any]] = [{"prediction": names[index]} for index in logits.argmax(-1)]
    if probabilities:
        exponents = np.exp(logits - logits.max(-1, keepdims=True))
        shares = exponents / exponents.sum(-1, keepdims=True)
        for answer, row in zip(answers, shares, strict=True):
            answer |= {f"probability_{name}": round(float(share), 6) for name, share in zip(names, row, strict=True)}
    return answers
