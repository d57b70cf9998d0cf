"""Peak memory of one distillation step at BERT-large shapes, with and without gradient checkpointing.

Each mode runs in a process of its own, because a process never gives its peak back. Prints a table and writes CSV:

    python benchmarks/checkpointing_memory.py --batch 8 --tokens 128 --output memory.csv
"""

import argparse
import copy
import csv
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

import tritune
from tritune.distill import Pair, distillation_losses, trace_fields
from tritune.training.optimizer import BertAdam

COEFFICIENTS = {"logits": 1.0, "hidden_states": 1.0, "attention_scores": 1.0, "block_output": 1.0}
SHAPES = {
    "bert-large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "bert-base": {},
}


def step(shape: str, batch: int, tokens: int, checkpointing: bool) -> tuple[float, float]:
    """One training step; peak memory in MB and seconds."""
    teacher = tritune.instrument(BertForSequenceClassification(BertConfig(**SHAPES[shape]))).eval()
    student = tritune.prepare(copy.deepcopy(teacher)).train()
    if checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    inputs = {
        "input_ids": torch.randint(1000, 20000, (batch, tokens)),
        "attention_mask": torch.ones(batch, tokens, dtype=torch.long),
    }
    optimizer = BertAdam(student.parameters(), 2e-5, total_steps=10)
    fields = trace_fields(COEFFICIENTS)
    started = time.perf_counter()
    with torch.no_grad():
        teachers = teacher(**inputs, output_trace=fields)
    output = student(**inputs, output_trace=fields)
    losses = distillation_losses(Pair(output, teachers, inputs["attention_mask"]), COEFFICIENTS)
    sum(losses.values()).backward()
    optimizer.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, time.perf_counter() - started


def main() -> None:
    """Measure every mode in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="bert-large")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--output", type=Path, default=Path("memory.csv"))
    parser.add_argument("--mode", choices=("plain", "checkpointing"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mode:
        print(*step(options.shape, options.batch, options.tokens, options.mode == "checkpointing"))
        return
    rows = []
    for mode in ("plain", "checkpointing"):
        command = [sys.executable, __file__, *sys.argv[1:], "--mode", mode]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        peak_mb, seconds = map(float, result.stdout.split())
        rows.append({"shape": options.shape, "batch": options.batch, "tokens": options.tokens, "mode": mode})
        rows[-1] |= {"peak_mb": round(peak_mb), "seconds": round(seconds, 1)}
        print(rows[-1])
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
