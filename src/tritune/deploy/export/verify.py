"""Compares an exported model with the model it was made from, on the dev set."""

from typing import Any

import numpy as np
from transformers import PreTrainedModel

from ...inference.evaluate import dev_logits, dev_scores
from ...tasks.heads import EncodedData
from ...tasks.registry import Task
from .runtime import OnnxClassifier


def compare_on_dev(
    model: PreTrainedModel, exported: PreTrainedModel | OnnxClassifier, task: Task, data: EncodedData, batch_size: int
) -> dict[str, Any]:
    """Evaluate both models on the task's dev splits, in the same batches.

    Args:
        model: what was exported.
        exported: called as `model` is.
        task, data: whose dev splits are compared.
        batch_size: rows per batch.

    Returns:
        `rows`; `agreement`, the share of rows with the same label (for regression: the same score to 1e-3);
        `differing_rows`; `largest_logit_difference` and `median_logit_difference`; the metric of both.
    """
    # `dev_logits` asks of a model only that it can be called and has a device.
    # The exported file is no model of transformers, but is called like one.
    logits = [dev_logits(each, data, task, batch_size) for each in (model, exported)]  # type: ignore[arg-type]
    ours, theirs = (np.concatenate([of[split] for split in task.dev_splits]) for of in logits)
    difference = np.abs(ours - theirs)
    same = {
        "regression": lambda: (difference <= 1e-3).all(-1),
        "multi_label": lambda: ((ours > 0) == (theirs > 0)).all(-1),
        "single_label": lambda: ours.argmax(-1) == theirs.argmax(-1),
    }[task.problem]()
    scores = [dev_scores(of, data, task)[task.metric] for of in logits]
    return {
        "task": task.name,
        "rows": len(ours),
        "agreement": float(same.mean()),
        "differing_rows": int((~same).sum()),
        "largest_logit_difference": float(difference.max()),
        "median_logit_difference": float(np.median(difference)),
        "metric": task.metric,
        "model": float(scores[0]),
        "exported": float(scores[1]),
    }
