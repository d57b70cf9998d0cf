"""Full-precision fine-tuning: how a teacher is made."""

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
from ..recipes import RECIPE_FILE, to_yaml
from ..tasks.task_file import TASK_FILE, task_record, task_to_yaml
from .arguments import bert_adam, training_arguments, without_clip_and_schedule
from .callbacks import BestModel, History, StepTimer
from .head_trainer import HeadTrainer
from .job import Job
from .resume import checkpoints, last_step, train
from .run import metrics_function
from .run_folder import BEST, CHECKPOINTS, HISTORY, METRICS, claimed, read_json, remove, write_json, write_text
from .versions import library_versions

_PHASE = "fine-tuning"


def finetune(
    job: Job, resume: bool = False, resumed: Callable[[int, int], None] = lambda step, steps: None
) -> dict[str, Any]:
    """Fine-tune the job's model, keep the checkpoint with the best dev score, and return its metrics.

    Args:
        job: what to work on.
        resume: go on with the fine-tuning that lies in `job.output`, if one does.
        resumed: of one that goes on, told after which step of how many.

    Returns:
        What `metrics.json` holds: scores of the best and of the last checkpoint.

    Raises:
        Interrupted: a signal came; the fine-tuning can be resumed.
        TrituneError: the folder belongs to another run, or cannot be written to.
    """
    recipe, output, process = job.recipe, job.output, this_process()
    with claimed(output, resume):
        finished, begun = read_json(output / METRICS), read_json(output / CHECKPOINTS / METRICS)
        origin = _origin(job, finished or begun)
        if finished:
            _remove_leftovers(output)
            return finished
        if begun:
            step = last_step(output, {_PHASE: 0})
            origin["resumed"] = [*begun.get("resumed", ()), step]
            resumed(step, recipe.max_steps)
        _keep_recipe(job, origin)
        set_seed(recipe.seed)
        keeper = BestModel(output / BEST, job.task.metric, job.processor, recipe)
        timer, started = StepTimer(), time.perf_counter()
        train(_trainer(job), _PHASE, [History(output / HISTORY, _PHASE), timer, keeper])
        process.wait_for_everyone()
        best = type(job.model).from_pretrained(output / BEST, dtype=torch.float32).to(job.model.device)
        metrics = origin | {
            "metric": job.task.metric,
            "recipe": recipe.name,
            "seed": recipe.seed,
            "precision": recipe.precision,
            "base": job.source,
            "steps": {_PHASE: recipe.max_steps},
            "seconds": round(time.perf_counter() - started, 1),
            "seconds_per_step": timer.per_step(),
            "best": _scores(job, best) | {"step": keeper.step},
            "last": _scores(job, job.model) | {"step": recipe.max_steps},
            "sha256": weights_sha256(best),
            "size_bytes": size_bytes(best),
            "versions": library_versions(),
        }
        if process.is_main_process:
            with usual_modes(output):
                best.save_pretrained(output)
            job.processor.save_pretrained(output)
            write_json(output / METRICS, metrics)
            _remove_leftovers(output)
    return metrics


def _remove_leftovers(output: Path) -> None:
    for name in (BEST, CHECKPOINTS):
        remove(output / name)


def _origin(job: Job, earlier: dict[str, Any]) -> dict[str, Any]:
    """What is trained from what; refuses to go on with an earlier run of other making."""
    origin = {"task": job.task.name, **task_record(job.task), "base_sha256": weights_sha256(job.model)}
    job.check_rows(earlier)
    path = job.output / RECIPE_FILE
    if path.is_file() and path.read_text(encoding="utf-8") != to_yaml(job.recipe):
        raise TrituneError(f"{job.output}: --resume: the run there has another recipe ({RECIPE_FILE})")
    if earlier and any(earlier.get(key) != value for key, value in origin.items()):
        raise TrituneError(f"{job.output}: --resume: the run there has another task, data or base model")
    job.check_rows(earlier, "encoded")
    # Of which rows the steps of an earlier run were made is known by its own record alone.
    rows = earlier.get("rows") if earlier else job.rows
    return origin | ({"rows": rows} if rows else {})


def _keep_recipe(job: Job, origin: dict[str, Any]) -> None:
    """Write down what is trained from what."""
    beside = job.output / CHECKPOINTS / METRICS
    # The recipe first: a folder that holds one is a run that can go on.
    write_text(job.output / RECIPE_FILE, to_yaml(job.recipe))
    beside.parent.mkdir(parents=True, exist_ok=True)
    write_json(beside, origin)
    if job.task.files is not None:
        write_text(job.output / TASK_FILE, task_to_yaml(job.task))


def _trainer(job: Job) -> HeadTrainer:
    recipe = job.recipe
    args = training_arguments(recipe, recipe.max_steps, checkpoints(job.output, _PHASE), data_seed=recipe.seed)
    published = recipe.optimizer == "bert_adam"
    return HeadTrainer(
        model=job.model,
        args=without_clip_and_schedule(args) if published else args,
        optimizer_cls_and_kwargs=bert_adam(args, recipe.max_steps, recipe.warmup_ratio) if published else None,
        train_dataset=job.data.training_rows(recipe.image_augmentation, recipe.seed),
        eval_dataset=job.data.dev,
        data_collator=job.data.collate,
        compute_metrics=metrics_function(job.data),
        head=job.task.head,
    )


def _scores(job: Job, model: torch.nn.Module) -> dict[str, Any]:
    logits = dev_logits(model, job.data, job.task, job.recipe.per_device_eval_batch_size)
    return dev_scores(logits, job.data, job.task)
