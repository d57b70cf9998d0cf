"""From a job and its recipe to the arguments of a trainer."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, PreTrainedModel, TrainingArguments

from ..compute.kernels import kernels_available, load_kernels
from ..inference.evaluate import batch_order
from ..quant import Learned
from ..recipes import FinetuneRecipe
from .job import Job


def training_arguments(recipe: FinetuneRecipe, steps: int, folder: Path, data_seed: int) -> TrainingArguments:
    """`TrainingArguments` for `steps` updates of a recipe in force, with checkpoints in `folder`."""
    # Recipes name their keys as `TrainingArguments` does.
    shared = {field.name for field in fields(FinetuneRecipe)} & {field.name for field in fields(TrainingArguments)}
    values: dict[str, Any] = {name: getattr(recipe, name) for name in shared}
    values |= {
        "max_steps": steps,
        "lr_scheduler_type": "linear",
        "warmup_steps": round(recipe.warmup_ratio * steps),
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        # While the teacher's tensors are plugged in, V and W_O do not contribute to the loss.
        "ddp_find_unused_parameters": True,
        "eval_strategy": "steps",
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_total_limit": 1,
        "data_seed": data_seed,
        "use_cpu": not torch.accelerator.is_available(),
        "run_name": f"{recipe.name}-seed{recipe.seed}",
        "disable_tqdm": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    return TrainingArguments(str(folder), **values)


def data_arguments(job: Job, model: PreTrainedModel) -> dict[str, Any]:
    """The arguments of a `HeadTrainer` by a job's task and data: head, rows that select, collator and metrics.

    As in `predict`, rows of similar length share a batch where `model`, which is to be evaluated, allows it.
    """
    rows = job.data.splits[job.data.selection]
    order = batch_order(model, rows)

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        """Select the best checkpoint by these."""
        return job.data.measures[job.data.selection](np.asarray(prediction.predictions)[np.argsort(order)])

    return {
        "head": job.task.head,
        "eval_dataset": rows if isinstance(order, range) else rows.select(order),
        "data_collator": job.data.collate,
        "compute_metrics": metrics,
    }


def takes_kernels(setting: bool | None, has_kernels: bool, device: torch.device) -> bool:
    """Whether training with the recipe's `fused_kernels` uses those of `compute.kernels`; if so, they are loaded.

    Raises:
        TrituneError: they are requested, and tritune was installed without them.
    """
    if setting is False or not has_kernels or device.type != "cpu":
        return False
    if setting is None:
        return kernels_available()
    load_kernels()
    return True


def separate_learned_scales(optimizer: torch.optim.Optimizer, model: torch.nn.Module, rate: float) -> None:
    """Move what the quantizers of `model` learn to a group of their own, with its peak `rate` and no weight decay."""
    learned = [p for module in model.modules() if isinstance(module, Learned) for p in module.parameters()]
    if not learned:
        return
    own = {id(parameter) for parameter in learned}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
    optimizer.add_param_group({"params": learned, "lr": rate, "weight_decay": 0.0})
