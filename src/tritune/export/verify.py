"""Whether an exported model answers as the model it was made from: the dev set through both."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from ..data import load_task_data
from ..evaluate import dev_logits, dev_scores
from ..recipes import FinetuneRecipe
from ..tasks import Task


def compare_on_dev(
    model: PreTrainedModel,
    exported: nn.Module,
    task: Task,
    data_folder: Path | None,
    processor: Any,
    recipe: FinetuneRecipe,
) -> dict[str, Any]:
    """Run the task's dev splits through both, in the same batches.

    Args:
        model: what was exported.
        exported: takes batches as `model` does.
        task: of the table.
        data_folder: the task's original files; None reads the hub.
        processor: the model's tokenizer or image processor.
        recipe: resolved; says length, padding and batch size.

    Returns:
        `rows`; `agreement`, the share of rows with the same label (for regression: the same score to 1e-3);
        `differing_rows`; `largest_logit_difference` and `median_logit_difference`; the metric of both.
    """
    splits = load_task_data(task, data_folder, task.dev_splits)
    data = task.head.encode(splits, task, processor, recipe.max_length, recipe.padding)
    logits = [dev_logits(each, data, task, recipe.per_device_eval_batch_size) for each in (model, exported)]
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
