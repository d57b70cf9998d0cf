"""Seconds of one training step: QAT against float distillation, in one process, arm after arm in turn.

    python benchmarks/training_step.py --quick
    python benchmarks/training_step.py --output training_step.csv
    python benchmarks/training_step.py --published --output published.csv
    python benchmarks/training_step.py --profile --shape minilm --tokens 64 --precision bf16

A ratio is the median of one arm over that of float distillation in the same precision with the same losses and the same
optimizer; freed memory is kept, as by the command line. bfloat16 is left out where the device has no instructions that
multiply it, unless it is asked for by `--precision`. With --published the float arm has torch's AdamW and memory is
left as it is: so the published step was measured, at 5.4 (16 tokens) and 2.0 (64 tokens) times float distillation with
MiniLM's shape, batch 16, two cores. Its cost model counts only if it comes within a tenth of these.
"""

import argparse
import gc
import statistics
import time
from pathlib import Path

import torch
from arms import PRECISIONS, SHAPES, Step, arms, precisions, write_csv

from tritune.compute.devices import keep_freed_memory

CASES = (("minilm", 16), ("minilm", 64), ("minilm", 128), ("bert-base", 128))
PUBLISHED_RATIOS = {("minilm", 16): 5.4, ("minilm", 64): 2.0}


def median_seconds(steps: dict[str, Step], seconds: float, device: torch.device) -> tuple[dict[str, float], int]:
    """Median seconds of every step, taken in turn until `seconds` are over; and how many rounds that were."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    started = time.perf_counter()
    rounds = 0
    # The first two rounds pay for page faults, optimizer states and kernels' own choices.
    while rounds < 5 or time.perf_counter() - started < seconds:
        # Another arm first in every round: none always follows the one that fills the caches most.
        turn = rounds % len(steps)
        for name, step in [*steps.items()][turn:] + [*steps.items()][:turn]:
            before = time.perf_counter()
            step()
            if device.type != "cpu":
                torch.accelerator.synchronize()
            times[name].append(time.perf_counter() - before)
        rounds += 1
    return {name: statistics.median(values[2:]) for name, values in times.items()}, rounds - 2


def measure(
    shape: str, tokens: int, precision: str, batch: int, seconds: float, device: torch.device, published: bool
) -> list[dict]:
    """One row per arm; prints a line each."""
    steps = arms(shape, batch, tokens, precision, device, published)
    medians, rounds = median_seconds(steps, seconds, device)
    rows = []
    for arm, median in medians.items():
        ratio = median / medians["float"]
        note = ""
        if arm == "published" and (expected := PUBLISHED_RATIOS.get((shape, tokens))):
            counts = abs(ratio / expected - 1) <= 0.1
            note = f" (a cost model; {'counts' if counts else 'does not count'}: {expected} was measured)"
        print(f"{arm} {precision} {shape} tokens={tokens} ratio {ratio:.2f} ({1e3 * median:.0f} ms){note}", flush=True)
        rows.append(
            {"shape": shape, "batch": batch, "tokens": tokens, "precision": precision, "arm": arm, "rounds": rounds}
            | {"milliseconds": round(1e3 * median, 2), "ratio": round(ratio, 3)}
        )
    return rows


def profile(shape: str, tokens: int, precision: str, batch: int, device: torch.device) -> None:
    """Where QAT spends more than float distillation: self time of every operation, milliseconds per step."""
    repeats, totals = 5, {}
    steps = arms(shape, batch, tokens, precision, device)
    for name in ("float", "qat"):
        for _ in range(2):
            steps[name]()
        with torch.profiler.profile() as record:
            for _ in range(repeats):
                steps[name]()
        for event in record.key_averages():
            milliseconds = (event.self_cpu_time_total + getattr(event, "self_device_time_total", 0)) / 1e3 / repeats
            totals.setdefault(event.key, {})[name] = milliseconds
    table = [(row.get("float", 0.0), row.get("qat", 0.0), key) for key, row in totals.items()]
    table.sort(key=lambda row: row[0] - row[1])
    print(f"{'float ms':>10}{'qat ms':>10}{'more':>10}  operation")
    for plain, qat, key in table[:20]:
        print(f"{plain:10.1f}{qat:10.1f}{qat - plain:10.1f}  {key}")
    print(f"{sum(row[0] for row in table):10.1f}{sum(row[1] for row in table):10.1f}{'':10}  all")


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="MiniLM at 16 and 64 tokens, few rounds")
    parser.add_argument("--shape", choices=SHAPES, help="only this one")
    parser.add_argument("--tokens", type=int, help="only this length")
    parser.add_argument("--precision", choices=PRECISIONS, help="only this one")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, help="for the rounds of one case; 5 with --quick, else 40")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--published", action="store_true", help="our step against a cost model of the published one")
    parser.add_argument("--profile", action="store_true", help="a profile of QAT against float instead of ratios")
    parser.add_argument("--output", type=Path, help="CSV")
    options = parser.parse_args()
    if not options.published:
        keep_freed_memory()
    cases = [
        case for case in CASES[: 2 if options.quick or options.published else None] if options.shape in (None, case[0])
    ]
    # In this order: what a large model leaves of the heap would slow a small one that comes after it.
    cases = list(dict.fromkeys((shape, options.tokens or tokens) for shape, tokens in cases))
    seconds = options.seconds or (5 if options.quick else 40)
    measured = [options.precision] if options.precision else precisions(options.device)
    rows = []
    for shape, tokens in cases:
        for precision in measured[:1] if options.published else measured:
            if options.profile:
                profile(shape, tokens, precision, options.batch, options.device)
            else:
                rows += measure(shape, tokens, precision, options.batch, seconds, options.device, options.published)
            gc.collect()
    if options.output and rows:
        write_csv(options.output, rows)


if __name__ == "__main__":
    main()
