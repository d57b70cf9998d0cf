"""The measurement: contenders take turns in one process, so that times of the same run can be compared."""

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from transformers import PreTrainedModel

from ...errors import TrituneError
from ...progress import tracked
from . import runtimes
from .contenders import REFERENCE, Contender, make_contenders

_PROFILED_RUNS = 5


def bench(
    model: PreTrainedModel,
    peers: Sequence[str] = ("onnxruntime",),
    batches: Sequence[int] = (1, 8),
    lengths: Sequence[int] = (32, 128),
    repeats: int = 15,
    threads: int = 1,
) -> dict[str, Any]:
    """Size, peak memory, latency and throughput of a model and of its peers.

    Args:
        model: a QAT or packed model.
        peers: of `contenders.PEERS`; ONNX Runtime float, the reference of the ratios, always runs.
        batches, lengths: every batch size with every length in tokens, without padding.
        repeats: timed runs per contender and shape, after one warm-up run.
        threads: per contender.

    Returns:
        `contenders`: a row each with `size_bytes` and `peak_memory_bytes` (of a process of its own that runs the
        largest shape once); `timings`: rows of `name`, `batch`, `length`, `latency_ms` (a median), `per_second`
        (sequences) and `ratio` (latency over that of ONNX Runtime float, below 1 is faster); `time_by_operator`: the
        share of each ONNX operator in our file's time at the largest shape; `repeats`, `threads`.

    Raises:
        TrituneError: a peer is not installed, or a number is not positive.
    """
    for name, values in (("batches", batches), ("lengths", lengths), ("repeats", [repeats]), ("threads", [threads])):
        if not values or min(values) < 1:
            raise TrituneError(f"--{name}: must be 1 or more, got {', '.join(map(str, values)) or 'nothing'}")
    vocabulary = model.config.vocab_size
    with tempfile.TemporaryDirectory(prefix="tritune-bench-") as folder:
        contenders = make_contenders(model, peers, Path(folder))
        largest = (max(batches), max(lengths), vocabulary)
        table = [
            {
                "name": contender.name,
                "size_bytes": contender.size_bytes,
                "peak_memory_bytes": peak_memory_bytes(contender, threads, *largest),
            }
            for contender in tracked(contenders, "peak memory", len(contenders), "runtimes", delay=0)
        ]
        shapes = [(batch, length) for batch in batches for length in lengths]
        return {
            "contenders": table,
            "timings": timings(contenders, shapes, vocabulary, repeats, threads),
            "time_by_operator": time_by_operator(contenders[0].path, threads, *largest),
            "repeats": repeats,
            "threads": threads,
        }


def timings(
    contenders: Sequence[Contender], shapes: Sequence[tuple[int, int]], vocabulary: int, repeats: int, threads: int
) -> list[dict[str, Any]]:
    """Medians of interleaved runs: in every round each contender runs once, so that disturbances affect all."""
    runs = {c.name: runtimes.RUNTIMES[c.runtime](str(c.path), threads) for c in contenders}
    rows = []
    for batch, length in tracked(shapes, "latency", len(shapes), "shapes", delay=0):
        inputs = runtimes.make_batch(batch, length, vocabulary)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(repeats + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run(inputs)
                if turn:
                    seconds[name].append(time.perf_counter() - start)
        medians = {name: median(values) for name, values in seconds.items()}
        rows += [
            {
                "name": name,
                "batch": batch,
                "length": length,
                "latency_ms": 1000 * value,
                "per_second": batch / value,
                "ratio": value / medians[REFERENCE],
            }
            for name, value in medians.items()
        ]
    return rows


def peak_memory_bytes(contender: Contender, threads: int, batch: int, length: int, vocabulary: int) -> int:
    """The peak memory of a process that loads one contender and runs one batch.

    Raises:
        TrituneError: that process failed; the message holds its last line.
    """
    numbers = [str(number) for number in (threads, batch, length, vocabulary)]
    command = [sys.executable, runtimes.__file__, contender.runtime, str(contender.path), *numbers]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TrituneError(f"{contender.name} does not run: {last}")
    return int(done.stdout.split()[-1])


def time_by_operator(path: Path, threads: int, batch: int, length: int, vocabulary: int) -> dict[str, float]:
    """The share of every operator in the time that ONNX Runtime spends in kernels, largest first."""
    inputs = runtimes.make_batch(batch, length, vocabulary)
    session = runtimes.onnxruntime_session(str(path), threads, profile=str(path.with_suffix("")))
    run = runtimes.of_session(session)
    for _ in range(_PROFILED_RUNS):
        run(inputs)
    spent: Counter[str] = Counter()
    for event in json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    return {operator: duration / spent.total() for operator, duration in spent.most_common()}


def table_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the CSV file: `timings` with size and memory."""
    parts = {row["name"]: row for row in results["contenders"]}
    return [
        row
        | {key: parts[row["name"]][key] for key in ("size_bytes", "peak_memory_bytes")}
        | {"threads": results["threads"], "repeats": results["repeats"]}
        for row in results["timings"]
    ]
