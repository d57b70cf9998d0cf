"""Ten steps of distillation in float64, alone or as one of several processes; saves what was logged, and weights."""

import copy
from pathlib import Path

import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, BertModel, TrainingArguments, set_seed

from tritune import DistillationTrainer, Quantization, prepare
from tritune.tasks.heads import FEATURE_EXTRACTION, TEXT_CLASSIFICATION
from tritune.training.balance import BalancedSampler

GLOBAL_BATCH, STEPS = 8, 10
PER_TOKEN = Quantization(weight_granularity="row", activation_granularity="token")
QUANTIZATIONS = {
    "learned": Quantization(
        weight_bits=4, weight_quantizer="lsq", weight_granularity="row", embedding_bits=None, activation_quantizer="lsq"
    )
}


def rows() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (GLOBAL_BATCH * STEPS,), generator=generator).tolist()
    ids = [torch.randint(1, 40, (8,), generator=generator).tolist() for _ in lengths]
    return Dataset.from_list(
        [
            {"input_ids": row[:n] + [0] * (8 - n), "attention_mask": [1] * n + [0] * (8 - n), "labels": n % 2}
            for row, n in zip(ids, lengths, strict=True)
        ]
    )


def main(folder: str, schedule: str, processes: int, *flags: str) -> None:
    torch.set_default_dtype(torch.float64)
    set_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=8,
    )
    headless = schedule == "features"
    teacher = (BertModel if headless else BertForSequenceClassification)(config).double()
    for parameter in teacher.parameters():
        parameter.data.mul_(4)
    student = prepare(copy.deepcopy(teacher), QUANTIZATIONS.get(schedule, PER_TOKEN))
    accumulation = 4 if "accumulate" in flags else 1
    args = TrainingArguments(
        folder,
        max_steps=STEPS,
        per_device_train_batch_size=GLOBAL_BATCH // processes // accumulation,
        gradient_accumulation_steps=accumulation,
        gradient_checkpointing="checkpoint" in flags,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=True,
        ddp_backend="gloo" if processes > 1 else None,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    coefficients = {
        "logits": 1.0,
        "hidden_states": 1.0,
        "attention_scores": 1.0,
        "attention_map": 0.5,
        "block_output": 2.0,
    }
    if headless:
        coefficients |= {"logits": 0.0, "embedding": 1.0}
    balance = {}
    if schedule == "balanced":
        coefficients = {name: weight for name, weight in coefficients.items() if name != "attention_map"}
        coefficients |= {"ground_truth": 1.0}
        balance = {"class_weights": [0.6, 2.5], "sampler": BalancedSampler(rows()["labels"], seed=1)}
    trainer = DistillationTrainer(
        model=student,
        teacher=teacher,
        args=args,
        coefficients=coefficients,
        schedule=None if schedule in ("none", "features", "balanced", *QUANTIZATIONS) else schedule,
        loss_average="valid",
        head=FEATURE_EXTRACTION if headless else TEXT_CLASSIFICATION,
        train_dataset=rows(),
        **balance,
    )
    trainer.train()
    history = [row for row in trainer.state.log_history if "loss" in row]
    names = [name for name, weight in coefficients.items() if weight]
    logged = {
        "losses": torch.tensor([row["loss"] for row in history]),
        "parts": torch.tensor([[row[f"{name}_loss"] for name in names] for row in history]),
        "coefficients": torch.tensor([coefficients[name] for name in names]),
        "gradient_norms": torch.tensor([row["grad_norm"] for row in history]),
    }
    state = logged | student.state_dict()
    torch.save(state, Path(folder) / f"{schedule}-rank{args.process_index}.pt")
