"""Microseconds of one Linear on a GPU: packed weights by the Triton kernel, by torch, and a float16 product.

    python benchmarks/triton_product.py --device cuda --output triton_product.csv

The Linears of MiniLM-L6 and BERT-base with ternary weights and 8-bit activations, one scale per token. `product_us` is
the kernel alone; `kernel_us` and `torch_us` are whole packed layers, which quantize their input first, on the kernel
and on torch's path; `float16_us` is torch's product of dense float16 weights, with nothing to quantize. Medians of all
rounds but the first, the contenders in turn. The ratios are the packed layer's time by the kernel over the others'.

With TRITON_INTERPRET=1, `--device cpu --quick` shows that the script runs; its times mean nothing.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from arms import write_csv
from torch import nn
from torch.nn import functional as F

from tritune.checkpoints.packed import PackedLinear
from tritune.checkpoints.packing import first_code
from tritune.compute import products
from tritune.compute.triton_product import packed_product
from tritune.modeling.layers import QuantLinear
from tritune.quant import Granularity, Ternary, Uniform

# In and out features: attention, first and second of the FFN.
LINEARS = ((384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072), (3072, 768))
TOKENS = (1, 16, 128, 1024, 8192)
CALLS = 20


def contenders(columns: int, features: int, tokens: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Name to what is timed; the packed ones give the same numbers."""
    weight_quantizer, input_quantizer = Ternary(Granularity.ROW), Uniform(8, Granularity.TOKEN)
    own = QuantLinear.from_float(nn.Linear(columns, features), weight_quantizer, input_quantizer)
    layer = PackedLinear.from_quantized(own).eval().to(device)
    values = torch.randn(tokens, columns, device=device)
    codes, scale = input_quantizer.quantize(values)
    weight, bias = layer.quantized_weight.half(), layer.bias.half()
    half, (first, step) = values.half(), (first_code(2, weight_quantizer.codes), weight_quantizer.codes.step)

    def by_torch() -> torch.Tensor:
        unpacker = layer._unpacker(values.dtype)
        return products.linear(values, layer.weight, layer.bias, input_quantizer, unpacker)

    assert torch.equal(layer._on_gpu(values), by_torch())
    return {
        "product": lambda: packed_product(
            codes, scale, layer.packed, layer.weight_scale, layer.bias, first=first, step=step
        ),
        "kernel": lambda: layer._on_gpu(values),
        "torch": by_torch,
        "float16": lambda: F.linear(half, weight, bias),
    }


def microseconds(call: Callable[[], object], device: torch.device, calls: int) -> float:
    """Of one call among several that are queued without waiting."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    before = time.perf_counter()
    for _ in range(calls):
        call()
    wait()
    return 1e6 * (time.perf_counter() - before) / calls


@torch.no_grad()
def main() -> None:
    """Measure every Linear at every number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="one Linear, two rounds of one call")
    parser.add_argument("--output", type=Path, help="CSV")
    options = parser.parse_args()
    if options.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU")
    rounds, calls = (2, 1) if options.quick else (options.rounds, CALLS)
    name = torch.cuda.get_device_name(options.device) if options.device.type == "cuda" else "interpreter"
    torch.manual_seed(0)
    rows = []
    for columns, features in LINEARS[: 1 if options.quick else None]:
        for tokens in TOKENS[: 2 if options.quick else None]:
            paths = contenders(columns, features, tokens, options.device)
            times: dict[str, list[float]] = {path: [] for path in paths}
            for _ in range(rounds):
                for path, call in paths.items():
                    times[path].append(microseconds(call, options.device, calls))
            medians = {path: statistics.median(found[1:]) for path, found in times.items()}
            row = {"device": name, "in": columns, "out": features, "tokens": tokens}
            row |= {f"{path}_us": round(median, 1) for path, median in medians.items()}
            row |= {f"over_{path}": round(medians["kernel"] / medians[path], 2) for path in ("torch", "float16")}
            rows.append(row)
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if options.output:
        write_csv(options.output, rows)


if __name__ == "__main__":
    main()
