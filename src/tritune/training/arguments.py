"""From a recipe in force to what Trainer takes."""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import SchedulerType, TrainingArguments

from ..compute.kernels import kernels_available, load_kernels
from ..quant import Learned
from ..recipes import FinetuneRecipe
from .optimizer import BertAdam


def training_arguments(recipe: FinetuneRecipe, steps: int, folder: Path, data_seed: int) -> TrainingArguments:
    """`TrainingArguments` for `steps` updates of a resolved recipe, checkpoints going to `folder`."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=recipe.learning_rate,
        adam_beta1=recipe.adam_beta1,
        adam_beta2=recipe.adam_beta2,
        adam_epsilon=recipe.adam_epsilon,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        lr_scheduler_type="linear",
        warmup_steps=round(recipe.warmup_ratio * steps),
        per_device_train_batch_size=recipe.per_device_train_batch_size,
        per_device_eval_batch_size=recipe.per_device_eval_batch_size,
        train_sampling_strategy=recipe.train_sampling_strategy,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        bf16=recipe.bf16,
        fp16=recipe.fp16,
        gradient_checkpointing=recipe.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        # Where the teacher's tensors stand in, V and W_O have no part in the loss.
        ddp_find_unused_parameters=True,
        eval_strategy="steps",
        eval_steps=recipe.eval_steps,
        logging_steps=recipe.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=recipe.save_steps,
        save_total_limit=1,
        seed=recipe.seed,
        data_seed=data_seed,
        use_cpu=not torch.accelerator.is_available(),
        report_to=recipe.report_to,
        run_name=f"{recipe.name}-seed{recipe.seed}",
        disable_tqdm=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def takes_kernels(setting: bool | None, has_kernels: bool, device: torch.device) -> bool:
    """Whether a training that has some runs the kernels of `tritune.compute.kernels`, which are loaded if so.

    Raises:
        TrituneError: they were asked for and cannot be had.
    """
    if setting is False or not has_kernels or device.type != "cpu":
        return False
    if setting is None:
        return kernels_available()
    load_kernels()
    return True


def bert_adam(args: TrainingArguments, steps: int, warmup_ratio: float) -> tuple[type[BertAdam], dict[str, Any]]:
    """Trainer's `optimizer_cls_and_kwargs` for the published optimizer over `steps` updates."""
    return BertAdam, {
        "lr": args.learning_rate,
        "total_steps": steps,
        "warmup": warmup_ratio,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
        "max_grad_norm": args.max_grad_norm,
    }


def separate_learned_scales(optimizer: torch.optim.Optimizer, model: torch.nn.Module, rate: float) -> None:
    """Give what the quantizers of `model` learn a group of its own in a new optimizer, without weight decay.

    Args:
        optimizer: made for `model`; it has made no step yet.
        model: wrapped or not.
        rate: the group's peak learning rate.
    """
    learned = [p for module in model.modules() if isinstance(module, Learned) for p in module.parameters()]
    if not learned:
        return
    own = {id(parameter) for parameter in learned}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
    optimizer.add_param_group({"params": learned, "lr": rate, "weight_decay": 0.0})


def without_clip_and_schedule(args: TrainingArguments) -> TrainingArguments:
    """A copy for an optimizer that clips and schedules by itself, so that Trainer does neither."""
    args = copy.copy(args)
    args.max_grad_norm, args.lr_scheduler_type, args.warmup_steps = 0, SchedulerType.CONSTANT, 0
    return args
