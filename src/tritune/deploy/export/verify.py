"""Compares an exported model with the model it was made from, on the dev set."""

from typing import Any

import numpy as np
from transformers import PreTrainedModel

from ...inference.evaluate import dev_logits, dev_scores
from ...tasks.heads import EncodedData
from ...tasks.heads.pooling import cosines
from ...tasks.registry import Task
from .runtime import OnnxModel

_Read = dict[str, np.ndarray]


def compare_on_dev(
    model: PreTrainedModel, exported: PreTrainedModel | OnnxModel, task: Task, data: EncodedData, batch_size: int
) -> dict[str, Any]:
    """Evaluate both models on the task's dev splits, in the same batches.

    Args:
        model: what was exported.
        exported: called as `model` is.
        task, data: whose dev splits are compared.
        batch_size: rows per batch.

    Returns:
        `unit` and `compared`: what was compared, and how many of it, such as 872 rows or 9999 words; the metric of
        both. Where models answer by logits: `agreement`, the share with the same answer (for regression: the same score
        to 1e-3), `differing`, `largest_logit_difference` and `median_logit_difference`. Of embeddings:
        `smallest_cosine` and `mean_cosine` between those of a sentence.
    """
    # `dev_logits` asks of a model only that it can be called and has a device.
    # The exported file is no model of transformers, but is called like one.
    ours, theirs = (dev_logits(each, data, task, batch_size) for each in (model, exported))  # type: ignore[arg-type]
    scores = [dev_scores(read, data, task)[task.metric] for read in (ours, theirs)]
    return {
        "task": task.name,
        "unit": task.head.unit,
        **(_of_logits if task.head.has_logits else _of_embeddings)(ours, theirs, task, data),
        "metric": task.metric,
        "model": float(scores[0]),
        "exported": float(scores[1]),
    }


def _of_logits(ours: _Read, theirs: _Read, task: Task, data: EncodedData) -> dict[str, Any]:
    pairs = {split: (ours[split], theirs[split]) for split in task.dev_splits}
    same = np.concatenate([task.head.same_answers(*pair, task, data, split) for split, pair in pairs.items()])
    values = ([task.head.without_padding(read, data.splits[split]) for read in pair] for split, pair in pairs.items())
    difference = np.concatenate([np.abs(one - other) for one, other in values])
    return {
        "compared": len(same),
        "agreement": float(same.mean()),
        "differing": int((~same).sum()),
        "largest_logit_difference": float(difference.max()),
        "median_logit_difference": float(np.median(difference)),
    }


def _of_embeddings(ours: _Read, theirs: _Read, task: Task, data: EncodedData) -> dict[str, Any]:
    found = np.concatenate([cosines(ours[split], theirs[split]) for split in task.dev_splits])
    return {"compared": len(found), "smallest_cosine": float(found.min()), "mean_cosine": float(found.mean())}
