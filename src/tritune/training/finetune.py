"""Full-precision fine-tuning of teachers."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from ..checkpoints.files import usual_modes
from ..checkpoints.load import weights_sha256
from ..checkpoints.size import size_bytes
from ..compute.devices import this_process
from ..errors import TrituneError
from ..inference.evaluate import dev_logits, dev_scores
from ..recipes import RECIPE_FILE, FinetuneRecipe, to_yaml
from ..tasks.task_file import task_record
from .arguments import data_arguments, training_arguments
from .balance import balance_arguments
from .callbacks import BestModel, History, StepTimer
from .head_trainer import HeadTrainer
from .job import Job
from .resume import checkpoints, last_step, train
from .run_folder import BEST, CHECKPOINTS, HISTORY, METRICS, claimed, read_json, remove, write_json

_PHASE = "fine-tuning"


def finetune(
    job: Job[FinetuneRecipe], resume: bool = False, resumed: Callable[[int, int], None] = lambda step, steps: None
) -> dict[str, Any]:
    """Fine-tune the job's model and keep the checkpoint with the best dev score.

    Args:
        job: what to work on.
        resume: continue the fine-tuning in `job.output`, if there is one.
        resumed: called with the last step and the number of steps if one is continued.

    Returns:
        The contents of `metrics.json`: scores of the best and of the last checkpoint.

    Raises:
        Interrupted: a signal was received; the fine-tuning can be resumed.
        TrituneError: the folder belongs to another run, or is not writable.
    """
    recipe, output, process = job.recipe, job.output, this_process()
    with claimed(output, resume):
        finished, begun = read_json(output / METRICS), read_json(job.record)
        origin = _origin(job, finished or begun)
        if finished:
            _remove_leftovers(output)
            return finished
        if begun:
            step = last_step(output, {_PHASE: 0})
            origin["resumed"] = [*begun.get("resumed", ()), step]
            resumed(step, recipe.max_steps)
        job.begin(origin)
        set_seed(recipe.seed)
        keeper = BestModel(output / BEST, job.task.metric, job.processor, recipe)
        timer, started = StepTimer(), time.perf_counter()
        train(_trainer(job), _PHASE, [History(output / HISTORY, _PHASE), timer, keeper])
        process.wait_for_everyone()
        best = type(job.model).from_pretrained(output / BEST, dtype=torch.float32).to(process.device)
        batch_size = recipe.batch_sizes[1]
        best_scores, last_scores = (
            dev_scores(dev_logits(model, job.data, job.task, batch_size), job.data, job.task)
            for model in (best, job.model)
        )
        metrics = job.facts({_PHASE: recipe.max_steps}) | {
            **origin,
            "base": job.source,
            "seconds": round(time.perf_counter() - started, 1),
            "seconds_per_step": timer.per_step(),
            "best": best_scores | {"step": keeper.step},
            "last": last_scores | {"step": recipe.max_steps},
            "sha256": weights_sha256(best),
            "size_bytes": size_bytes(best),
        }
        if process.is_main_process:
            with usual_modes(output):
                best.save_pretrained(output)
            job.processor.save_pretrained(output)
            write_json(output / METRICS, metrics)
            _remove_leftovers(output)
    return metrics


def _trainer(job: Job[FinetuneRecipe]) -> HeadTrainer:
    recipe = job.recipe
    return HeadTrainer(
        model=job.model,
        args=training_arguments(recipe, recipe.max_steps, checkpoints(job.output, _PHASE), data_seed=recipe.seed),
        optimizer=recipe.optimizer,
        warmup_ratio=recipe.warmup_ratio,
        train_dataset=job.data.training_rows(recipe.image_augmentation, recipe.seed),
        **data_arguments(job, job.model),
        **balance_arguments(job, recipe.seed),
    )


def _remove_leftovers(output: Path) -> None:
    for name in (BEST, CHECKPOINTS):
        remove(output / name)


def _origin(job: Job[FinetuneRecipe], earlier: dict[str, Any]) -> dict[str, Any]:
    """What is trained on what; refuses to continue an `earlier` run of anything else."""
    origin = {"task": job.task.name, **task_record(job.task), "base_sha256": weights_sha256(job.model)}
    job.check_rows(earlier)
    path = job.output / RECIPE_FILE
    if path.is_file() and path.read_text(encoding="utf-8") != to_yaml(job.recipe):
        raise TrituneError(f"{job.output}: --resume: the run there has another recipe ({RECIPE_FILE})")
    if earlier and any(earlier.get(key) != value for key, value in origin.items()):
        raise TrituneError(f"{job.output}: --resume: the run there has another task, data or base model")
    job.check_rows(earlier, "encoded")
    # Only the record of an earlier run knows the rows of its steps.
    rows = earlier.get("rows") if earlier else job.rows
    return origin | ({"rows": rows} if rows else {})
