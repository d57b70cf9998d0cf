"""The engine's products alone, on one thread, against the processor's peak: every instruction set that runs here.

    python benchmarks/engine_products.py --output benchmarks/results/engine_products.csv

Compiles the engine as a wheel has it, and with it benchmarks/native/products.cpp, which says how the times are taken.
`peak_tops` is measured, too: the instruction of the products on registers alone, with the addition where it takes one
(AVX2). `read_gb_s` is a walk over memory that no cache holds, which bounds `weights_gb_s` where the weights lie there.
"""

import argparse
import csv
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NATIVE, DRIVERS = ROOT / "src" / "tritune" / "engine" / "native", ROOT / "benchmarks" / "native"


def processor() -> str:
    """Its name as the system has it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def compiled(folder: Path) -> Path:
    """The driver as a program in a folder."""
    build = [sys.executable, "setup.py", "-q", "build_ext", "--build-temp", folder, "--build-lib", folder]
    subprocess.run(list(map(str, build)), cwd=ROOT, check=True)
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O2", f"-I{NATIVE}", DRIVERS / "products.cpp"]
    program = folder / "products"
    subprocess.run([*map(str, [*command, *folder.glob("*.o")]), "-pthread", "-o", str(program)], check=True)
    return program


def main() -> None:
    """Measure, print and write all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--isa", action="append", default=[], help="these instead of all that run here")
    parser.add_argument("--output", type=Path, help="CSV")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = [compiled(Path(folder)), str(options.rounds), *options.isa]
        said = subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True).stdout
    rows = [{"processor": processor()} | row for row in csv.DictReader(said.splitlines())]
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items() if key != "processor"))
    if options.output and rows:
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
