"""Peak memory of training, and where it goes: float distillation against QAT, with and without gradient checkpointing.

    python benchmarks/training_memory.py --shape minilm --batch 16 --tokens 128 --output memory.csv
    python benchmarks/training_memory.py --shape bert-large --batch 8 --tokens 128

Every arm runs in a process of its own, because a process never gives its peak back. The peak is that of the second
step, above what the process holds before it makes its models. Parts: weights of teacher and student, gradients, both
moments of the optimizer, and what autograd keeps from the student's forward pass for its backward pass, weights left
out.
"""

import argparse
import copy
import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from arms import PRECISIONS, SHAPES, build, distillation_step, make_batch, write_csv
from torch import nn

import tritune
from tritune.compute.devices import multiplies_bf16
from tritune.training.optimizer import BertAdam

ARMS = ("float", "qat", "float checkpointing", "qat checkpointing")


def resident_mb() -> float:
    """What this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def size_mb(tensors: list[torch.Tensor]) -> float:
    """What the storages of some tensors take, each counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values()) / 1e6


def kept_for_backward(step, student: nn.Module) -> float:
    """MB that autograd keeps in one step, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in student.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        """Note a tensor's storage and keep it alive, so that no address is counted twice."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(kept.values()) / 1e6


def measure(shape: str, batch: int, tokens: int, precision: str, arm: str) -> dict[str, float]:
    """Peak and parts of one arm in MB."""
    device = torch.device("cpu")
    before = resident_mb()
    teacher = tritune.instrument(build(shape, device)).eval().requires_grad_(False)
    student = copy.deepcopy(teacher).requires_grad_(True)
    if arm.startswith("qat"):
        student = tritune.prepare(build(shape, device))
    student.train()
    if arm.endswith("checkpointing"):
        student.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = BertAdam(student.parameters(), 2e-5, total_steps=100)
    dtype, fused = PRECISIONS[precision], arm.startswith("qat") and precision == "bf16"
    step = distillation_step(student, teacher, make_batch(batch, tokens, device), optimizer, dtype, fused)
    step()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    step()
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    weights = size_mb(list(student.parameters()))
    return {
        "peak_mb": peak * 1024 / 1e6 - before,
        "teacher_mb": size_mb(list(teacher.parameters())),
        "student_mb": weights,
        "gradients_mb": weights,
        "moments_mb": size_mb(
            [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
        ),
        "kept_for_backward_mb": kept_for_backward(step, student),
    }


def main() -> None:
    """Measure every arm in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="minilm")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--output", type=Path, help="CSV; rows are appended")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(measure(options.shape, options.batch, options.tokens, options.precision, options.arm)))
        return
    if options.precision == "bf16" and not multiplies_bf16(torch.device("cpu")):
        print("bf16: this processor has no instructions that multiply it, so every step takes longer")
    rows: list[dict] = []
    for arm in ARMS:
        command = [sys.executable, __file__, *sys.argv[1:], "--arm", arm]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        parts = json.loads(result.stdout)
        row = {"shape": options.shape, "batch": options.batch, "tokens": options.tokens}
        row |= {"precision": options.precision, "arm": arm} | {name: round(mb) for name, mb in parts.items()}
        row["ratio"] = round(row["peak_mb"] / rows[0]["peak_mb"], 2) if rows else 1.0
        rows.append(row)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if options.output:
        write_csv(options.output, rows, append=True)


if __name__ == "__main__":
    main()
