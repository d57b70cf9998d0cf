"""Time of a forward pass: the native engine on each instruction set against other runtimes, taken in turn.

    python benchmarks/inference.py --output benchmarks/results/inference.csv
    python benchmarks/inference.py --quick

Contenders take turns: in every round each runs for a moment, after one call that is not counted, and the median of all
calls counts. Peers get padded batches, as they need them, and choose their instruction sets themselves, so rows of an
instruction set below the best compare an older processor's engine with a newer one's peers. Beside the times stand the
engine's TOP/s (two operations for each multiplication with its addition), their share of what the processor's
instruction gives on registers alone (`engine_products.py` measures it; a compiler is needed), where the engine's time
goes, and what lies on disk and in memory. A runtime that is not installed is left out; `pip install 'tritune[bench]'`
brings all but llama.cpp, for whose 2-bit format MiniLM's width is no multiple of 256.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from engine_products import NATIVE, compiled, processor
from inference_peers import PEERS, SHAPES, Call, Texts, installed, make_files, ours, peer

MIXED = tuple(round(8 + 120 * place / 31) for place in range(32))
BATCHES = [Texts((1,)), Texts((16,)), Texts((128,)), Texts((128,) * 8), Texts(MIXED)]
OURS = "tritune "
_PAUSE = 0.003  # seconds in which idle threads of the last contender stop spinning
_LONG = 0.5
_MEMORY = """
import re, sys
from pathlib import Path
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
import numpy as np
import tritune.engine.model, tritune.engine.integrity
bare = resident()
packed = tritune.engine.integrity.read_packed(Path(sys.argv[1]))
model = tritune.engine.model.Model(packed.config_bytes, packed.weights)
packed.forget()
model.run(np.ones(128, np.int32), [0, 128])
print(resident() - bare, bare)
"""


def timings(
    contenders: dict[str, Callable[[Texts], Call]],
    texts: Texts,
    rounds: int,
    slice_s: float,
    clock: Callable[[], float],
) -> dict[str, float]:
    """Milliseconds of a call of each contender: the median over rounds of the median over the calls of a round."""
    calls = {name: made(texts) for name, made in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name, call in calls.items():
            time.sleep(_PAUSE)
            if not turn or times[name][0] < _LONG:  # the caches are nothing to a call that is longer
                call()
            own: list[float] = []
            begin = time.perf_counter()
            while not own or time.perf_counter() - begin < slice_s:
                before = clock()
                call()
                own.append(clock() - before)
            times[name].append(median(own))
    return {name: 1e3 * median(values) for name, values in times.items()}


def peaks(folder: Path) -> dict[str, float]:
    """The TOP/s of each instruction set's products on registers alone; also leaves the engine's objects in `folder`."""
    program = compiled(folder)
    said = subprocess.run([program, "3"], check=True, stdout=subprocess.PIPE, text=True).stdout
    rows = [row for row in csv.DictReader(said.splitlines()) if row["bits"] == "2"]
    return {row["isa"]: float(row["peak_tops"]) for row in rows}


def stages(folder: Path, program: Path, isa: str, texts: Texts) -> dict[str, str]:
    """The share of each stage in the engine's time on one thread, as `native/stages.cpp` prints it."""
    command = [program, folder / "packed", isa, len(texts.lengths), texts.lengths[0], 1]
    said = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout
    return next(csv.DictReader(said.splitlines()))


def memory(folder: Path) -> tuple[float, float]:
    """MB on disk of a packed model without tokenizer, and MB that a process without torch grows by when it answers."""
    disk = sum((folder / "packed" / name).stat().st_size for name in ("config.json", "model.safetensors")) / 1e6
    said = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(folder / "packed")], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return disk, float(said.split()[0])


def measured(
    options: argparse.Namespace, folder: Path, shape: str, threads: int, peers: list[str]
) -> Iterator[dict[str, object]]:
    """Rows of the table of one shape: one for each batch, instruction set and peer."""
    from tritune.engine.binding import isas

    own = [isa for isa in isas() if isa != "scalar" and isa in (options.isa or isas())]
    contenders = {OURS + isa: ours(folder, isa, threads) for isa in own}
    contenders |= {name: peer(name, folder, threads) for name in peers}
    clock = time.process_time if options.processor_time else time.perf_counter
    for texts in options.batches:
        ms = timings(contenders, texts, options.rounds, options.slice, clock)
        for isa in own:
            mine = ms[OURS + isa]
            tops = texts.operations(SHAPES[shape]) / mine / 1e9
            shared = {"isa": isa, "model": shape, "batch": len(texts.lengths), "tokens": texts.tokens}
            shared |= {"threads": threads, "ms": f"{mine:.3f}", "tops": f"{tops:.3f}"}
            for name in peers:
                yield shared | {"peer": name, "peer_ms": f"{ms[name]:.3f}", "ratio": f"{mine / ms[name]:.2f}"}
            if not peers:
                yield shared


def beside(options: argparse.Namespace, folder: Path, program: Path | None, rows: list[dict[str, object]]) -> None:
    """Add to the rows of one shape on one thread where the engine's time goes, for batches of equal lengths."""
    found: dict[tuple, dict[str, str]] = {}
    for row in rows:
        texts = next(one for one in options.batches if (len(one.lengths), one.tokens) == (row["batch"], row["tokens"]))
        if program is None or row["threads"] != 1 or ".." in texts.tokens:
            continue
        key = row["isa"], texts
        if key not in found:
            found[key] = stages(folder, program, str(row["isa"]), texts)
        row |= {name: f"{float(share):.2f}" for name, share in found[key].items() if name != "ms"}


def shown(row: dict[str, object]) -> str:
    """The line of a row on the best instruction set that a program may read."""
    where = " ".join(str(row[key]) for key in ("model", "batch", "tokens", "threads"))
    return f"ratio {where} {str(row['peer']).replace(' ', '-')} {row['ratio']}"


def main() -> None:
    """Measure, print and write all."""
    options = parsed()
    name, table, best = processor(), [], None
    with tempfile.TemporaryDirectory() as temporary:
        objects = Path(temporary)
        peak = {} if options.quick else peaks(objects)
        program = None if options.quick else _stages_program(objects)
        for shape in options.shapes:
            folder = options.models / shape
            # Quantizing for OpenVINO would take the minutes that there are.
            slow = {"openvino int8"} if options.quick and not (folder / "openvino.xml").exists() else set()
            peers = [name for name in options.peers if name not in slow]
            make_files(shape, folder, peers)
            disk_mb, resident_mb = memory(folder)
            print(f"memory {shape} {disk_mb:.1f} MB on disk, {resident_mb:.1f} MB resident beyond the bare process")
            rows = []
            for threads in options.threads:
                for row in measured(options, folder, shape, threads, peers):
                    best = best or row["isa"]
                    if "peer" in row:
                        print(shown(row) if row["isa"] == best else f"  {row['isa']}: {shown(row)}", flush=True)
                    rows.append(row)
            beside(options, folder, program, rows)
            for row in rows:
                of_peak = float(str(row["tops"])) / peak[row["isa"]] / row["threads"] if row["isa"] in peak else None
                more = {"peak_share": "" if of_peak is None else f"{of_peak:.2f}"}
                more |= {"disk_mb": f"{disk_mb:.1f}", "resident_mb": f"{resident_mb:.1f}"}
                table.append({"processor": name} | row | more)
    if options.output and table:
        columns = list(dict.fromkeys(key for row in table for key in row))
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(table)


def _stages_program(objects: Path) -> Path:
    program = objects / "stages"
    command = ["c++", "-std=c++20", "-O2", f"-I{NATIVE}", Path(__file__).with_name("native") / "stages.cpp"]
    subprocess.run([*map(str, [*command, *objects.glob("*.o")]), "-pthread", "-o", str(program)], check=True)
    return program


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="within three minutes: one thread, and OpenVINO only where its files are there",
    )
    parser.add_argument("--models", type=Path, default=Path("build/inference"), help="where files are kept")
    parser.add_argument("--shapes", nargs="+", default=[*SHAPES], choices=[*SHAPES])
    parser.add_argument("--threads", nargs="+", type=int, default=None, help="1 and 2 unless given")
    parser.add_argument("--isa", action="append", default=[], help="these instead of all that run here")
    parser.add_argument("--peers", nargs="*", default=None, choices=PEERS, metavar="PEER", help="all unless given")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--slice", type=float, default=0.1, help="seconds of a contender in a round")
    parser.add_argument(
        "--processor-time", action="store_true", help="the process's own, for a machine with other work; one thread"
    )
    parser.add_argument("--output", type=Path, help="CSV")
    options = parser.parse_args()
    wanted = options.peers if options.peers is not None else PEERS[:3] if options.quick else PEERS
    options.peers, options.batches = installed(wanted), BATCHES
    options.threads = options.threads or ([1] if options.quick or options.processor_time else [1, 2])
    if options.quick:
        options.rounds, options.slice = min(options.rounds, 2), min(options.slice, 0.03)
    for name in [name for name in wanted if name not in options.peers]:
        print(f"{name} is left out: it is not installed", file=sys.stderr)
    return options


if __name__ == "__main__":
    main()
