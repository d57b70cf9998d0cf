"""The score of one model on one task, and how far a student is from its teacher.

A score never has the teacher inside; `assisted_logits` is the one function that measures a student with the teacher's
tensors plugged in, and what it returns is reported under the name `assisted`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ..checkpoints.load import is_quantized
from ..checkpoints.plugin import TrituneConfig
from ..checkpoints.size import size_bytes
from ..compute.devices import this_process
from ..compute.held import weights_held
from ..errors import TrituneError
from ..modeling.instrument import instrument
from ..modeling.modes import evaluation_mode
from ..modeling.sites import Site
from ..modeling.trace import Intervention
from ..progress import tracked
from ..quant import Granularity
from ..recipes import FinetuneRecipe, Recipe, check_evaluation_keys, load_recipe, recipe_beside
from ..tasks.data import load_task_data
from ..tasks.data.rows_record import rows_sha256
from ..tasks.heads import TEXT_CLASSIFICATION, EncodedData, Head, head_of
from ..tasks.heads.encoded import Batch, Collate
from ..tasks.heads.features import COSINE
from ..tasks.heads.head import Read, read_logits, stacked
from ..tasks.models import fit_length, load_model
from ..tasks.registry import TASKS, Task

# Lengths and batches for texts without recipe and task; with no published ones, as own files have.
_ANY_TEXTS = Task("", "", ("text",), None, "", lambda predictions, labels: {}, TEXT_CLASSIFICATION, files={})


def predict(
    model: PreTrainedModel, dataset: Dataset, collate: Collate, batch_size: int, read: Read = read_logits
) -> np.ndarray:
    """What `read` takes of the outputs of `model` in evaluation mode, (rows, ...).

    Rows of similar length share a batch where `batch_order` allows it.
    """
    order = batch_order(model, dataset)
    with evaluation_mode(model), weights_held(), torch.no_grad():
        batches = _batches(dataset, collate, batch_size, model.device, order)
        read_rows = stacked([read(model(**batch), batch) for batch in batches])
    return read_rows[np.argsort(order)]


def batch_order(model: PreTrainedModel, dataset: Dataset) -> Sequence[int]:
    """The rows in the order in which batches are made of them: of similar length, which needs little padding.

    Only with per-tensor activation scales, where a row's logits depend on its batch mates, they stay as they are.
    """
    return range(len(dataset)) if shares_scales(model) else longest_first(dataset)


def shares_scales(model: PreTrainedModel) -> bool:
    """Whether the rows of a batch share scales of activations, so that one changes what another gives.

    Of something in a model's place that has no config this is not known: then they may.
    """
    if model.config is None:
        return True
    config = getattr(model.config, "quantization_config", None)
    if not isinstance(config, TrituneConfig):
        return False
    return any(
        one.activation_bits is not None and one.activation_granularity != Granularity.TOKEN
        for one in config.quantization.variants()
    )


def longest_first(dataset: Dataset) -> Sequence[int]:
    """The rows by their number of tokens, so that too little memory is noticed at once. What is no table, and images,
    stay in their order.

    >>> longest_first(Dataset.from_dict({"input_ids": [[1], [1, 2, 3], [4]]}))
    [1, 0, 2]
    """
    if not isinstance(dataset, Dataset) or "input_ids" not in dataset.column_names:
        return range(len(dataset))
    lengths = [len(ids) for ids in dataset["input_ids"]]
    return sorted(range(len(lengths)), key=lambda row: -lengths[row])


def assisted_logits(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    site: Site,
    dataset: Dataset,
    collate: Collate,
    batch_size: int,
    read: Read = read_logits,
    layer_map: Sequence[int] | None = None,
    weight: float = 1.0,
) -> np.ndarray:
    """What `read` takes of a student whose every layer uses the teacher's tensor at `site`, (rows, ...).

    `layer_map` is the teacher's layer for each of the student's; None for models of the same depth. `weight` is the
    teacher's share, see `Intervention`.
    """
    answers = []
    with evaluation_mode(student, teacher), weights_held(), torch.no_grad():
        for batch in _batches(dataset, collate, batch_size, student.device, range(len(dataset))):
            trace = teacher(**batch, output_trace=[site.field]).trace.mapped(layer_map)
            answers.append(read(student(**batch, intervention=Intervention(site, trace, weight)), batch))
    return stacked(answers)


def dev_logits(model: PreTrainedModel, data: EncodedData, task: Task, batch_size: int) -> dict[str, np.ndarray]:
    """What the task's head reads, (rows, ...), of every dev split of `task`."""
    return {
        split: predict(model, data.splits[split], data.collate, batch_size, task.head.read) for split in task.dev_splits
    }


def dev_scores(logits: dict[str, np.ndarray], data: EncodedData, task: Task) -> dict[str, Any]:
    """Metrics of the dev split that selects; those of further splits (MNLI's mismatched) under the split's name."""
    first, *others = task.dev_splits
    scores = {split: data.measures[split](logits[split]) for split in task.dev_splits}
    return scores[first] | {split: scores[split] for split in others}


def _batches(
    dataset: Dataset, collate: Collate, batch_size: int, device: torch.device, order: Sequence[int]
) -> Iterator[Batch]:
    loader = DataLoader(dataset, batch_size, sampler=order, collate_fn=collate)
    for batch in tracked(loader, "evaluate", len(loader), "batches"):
        yield {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}


def recipe_in_force(
    source: str | Path, model: PreTrainedModel, overrides: Sequence[str] = (), task: Task | None = None
) -> FinetuneRecipe:
    """The recipe beside a model, its null values taken from the task, or else from the usual ones of its kind.

    Raises:
        TrituneError: the recipe cannot be read, or an override cannot be used.
    """
    check_evaluation_keys(overrides)
    task = task or usual_task(head_of(model.config))
    given = {override.partition("=")[0].strip() for override in overrides}
    if task.max_length is None and (unused := given & {"max_length", "padding"}):
        raise TrituneError(f"--set: {min(unused)} would change nothing: images have no tokens to cut or pad")
    recipe = load_recipe(recipe_beside(source), overrides, Recipe if is_quantized(model) else FinetuneRecipe)
    return recipe.resolve(fit_length(task, model), train_rows=1)


def usual_task(head: Head) -> Task:
    """The task whose lengths and batches a model of this kind takes where nothing else says them."""
    if head is TEXT_CLASSIFICATION:
        return _ANY_TEXTS
    return next(task for task in TASKS.values() if task.head.name == head.name)


def evaluate_source(
    source: str | Path,
    task: Task,
    data_folder: Path | None = None,
    overrides: Sequence[str] = (),
    teacher_source: str | Path | None = None,
) -> dict[str, Any]:
    """The dev score of a model in a folder or on the hub, taken with the lengths and batches of its recipe.

    Args:
        source: a run, a teacher, or any model fine-tuned on `task`.
        task: of the table, or of a user's own files.
        data_folder: the original files of a task of the table; None reads the hub.
        overrides: `key=value` for `recipes.EVALUATION_KEYS` of the recipe beside the model.
        teacher_source: a second model to which the closeness is measured.

    Returns:
        The scores, the closeness, how many `rows` were scored, their hash as `rows_record` keeps it, and the size.

    Raises:
        TrituneError: model, data or an override cannot be used.
    """
    if task.metric == COSINE and teacher_source is None:
        raise TrituneError(f"{task.title}: lines have no scores; name the model that they are compared with: --teacher")
    task = task.for_model(source)
    model = load_model(source, task)
    recipe = recipe_in_force(source, model, overrides, task)
    task = replace(task, long_texts=recipe.long_texts)
    processor = task.head.load_processor(source, model, recipe.max_length)
    model.to(this_process().device)
    splits = load_task_data(task, data_folder, task.dev_splits)
    data = task.head.encode(splits, task, processor, recipe.max_length, recipe.padding)
    batch_size = recipe.per_device_eval_batch_size or task.batch_size
    logits = dev_logits(model, data, task, batch_size)
    scores = {"model": str(source), "task": task.name, "metric": task.metric, **dev_scores(logits, data, task)}
    if teacher_source is not None:
        # Through our attention, as in a training: the closeness is then that of metrics.json to the last bit.
        teacher = instrument(load_model(teacher_source, task))
        teacher.to(this_process().device)
        task.head.load_processor(source, teacher, recipe.max_length)
        teachers = dev_logits(teacher, data, task.for_model(teacher_source), batch_size)
        scores |= task.head.closeness(logits[data.select], teachers[data.select], task, data)
    rows = splits[data.select]
    return scores | {"rows": len(rows), "rows_sha256": rows_sha256(rows), "size_bytes": size_bytes(model)}
