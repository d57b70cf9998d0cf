"""Microseconds of one quantization to bfloat16 codes: the kernel against the plain path, in turn in one process.

    python benchmarks/quantizer_kernels.py --output quantizer_kernels.csv

Medians of all rounds but the first ten; `ratio` is the kernel's time over the plain path's.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from arms import write_csv

from tritune.compute.devices import keep_freed_memory
from tritune.compute.kernels import fused_kernels, integers
from tritune.quant import Ternary, Uniform

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
# A weight of the attention and one of the FFN of MiniLM; what enters Linears at 16 x 16 and 16 x 64 tokens; a map.
CASES = (
    ("twn", Ternary(), (384, 384), FLOAT32),
    ("twn", Ternary(), (1536, 384), FLOAT32),
    ("uniform", Uniform(), (16, 16, 384), FLOAT32),
    ("uniform", Uniform(), (16, 64, 384), FLOAT32),
    ("uniform", Uniform(), (16, 64, 1536), BFLOAT16),
    ("uniform", Uniform(), (16, 12, 64, 64), FLOAT32),
)


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--output", type=Path, help="CSV")
    options = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    rows = []
    for name, quantizer, shape, dtype in CASES:
        values = torch.randn(shape).to(dtype)
        paths = {"plain": quantizer.integers, "kernel": lambda *given, own=quantizer: integers(own, *given)}
        times: dict[str, list[float]] = {path: [] for path in paths}
        with fused_kernels():
            for _ in range(options.rounds):
                for path, quantize in paths.items():
                    before = time.perf_counter()
                    quantize(values, BFLOAT16)
                    times[path].append(time.perf_counter() - before)
        plain, kernel = (1e6 * statistics.median(times[path][10:]) for path in ("plain", "kernel"))
        row = {"quantizer": name, "shape": " x ".join(map(str, shape)), "dtype": str(dtype).removeprefix("torch.")}
        row |= {"plain_us": round(plain), "kernel_us": round(kernel), "ratio": round(kernel / plain, 2)}
        rows.append(row)
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if options.output:
        write_csv(options.output, rows)


if __name__ == "__main__":
    main()
