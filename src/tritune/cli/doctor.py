"""`tritune doctor`: what this machine can do, what tritune makes of it, and what would be faster."""

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from ..engine import binding
from ..engine.cores import cores
from ..errors import TrituneError
from . import options

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "onnxruntime", "openvino")
_VARIABLES = (
    *("TRITUNE_ENGINE", "TRITUNE_ISA", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_CPU_AFFINITY"),
    *("CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_OFFLINE"),
)
_CPUINFO = Path("/proc/cpuinfo")
# What the engine can use, best first, and what Linux says of a processor that has it.
_INSTRUCTION_SETS = {
    "amx": {"amx_tile", "amx_int8"},
    "avx512vnni": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"},
    "avxvnni": {"avx_vnni"},
    "avx2": {"avx2", "fma", "f16c"},
    "neon": {"asimddp"},
}
# Of these training in bfloat16 gains, see `compute.devices`.
_BFLOAT16 = {"amx_bf16", "avx512_bf16", "bf16"}


def doctor(json: options.Json = False) -> None:
    """Show the processor, the native engine, versions and settings, and say what would be faster.

    Example: `tritune doctor`
    """
    from .show import show_doctor, show_result

    show_result(examine(), show_doctor, as_json=json)


def examine() -> dict[str, Any]:
    """What `tritune doctor` shows, as JSON has it: `advice` is lines for people, the rest says what they come from."""
    versions = {"tritune": _version("tritune"), "python": platform.python_version()}
    found = {
        "system": platform.platform(),
        "processor": _processor(),
        "engine": _engine(),
        "versions": versions | {name: _version(name) for name in _PACKAGES},
        "gpus": _gpus(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
    return found | {"advice": advice(found)}


def advice(found: dict[str, Any]) -> list[str]:
    """What would be faster, or does not work as it was meant, a line each.

    Args:
        found: what `examine` has found.
    """
    engine, processor, environment = found["engine"], found["processor"], found["environment"]
    lines = []
    if engine["problem"]:
        lines.append(engine["problem"])
    if not engine["isas"]:
        lines.append("without the engine, packed models run in torch, and training in bfloat16 has no kernels")
    elif missing := [name for name in processor["instruction_sets"] if name not in engine["isas"]]:
        names = ", ".join(missing)
        lines.append(f"the engine does not use {names}, which the processor has: a newer g++ or clang++ may know it")
    if engine["isa"] not in (None, *engine["isas"][:1]):
        lines.append(f"TRITUNE_ISA={engine['isa']}: {engine['isas'][0]} is faster here; unset it")
    if environment.get("TRITUNE_ENGINE") == "reference":
        lines.append("TRITUNE_ENGINE=reference: packed models run in torch; unset it for the engine")
    threads = environment.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) > processor["cores"]:
        lines.append(f"OMP_NUM_THREADS={threads}: threads wait for each other on {processor['cores']} cores; lower it")
    elif threads.isdecimal() and int(threads) < processor["cores"]:
        lines.append(f"OMP_NUM_THREADS={threads}: training uses no more of {processor['cores']} cores")
    if found["gpus"] and (found["versions"]["torch"] or "").endswith("+cpu"):
        lines.append("torch is a build for CPUs: training does not use the GPU; install a build for CUDA")
    return lines


def _processor() -> dict[str, Any]:
    about = _cpuinfo()
    features = set(about.get("flags", about.get("Features", "")).split())
    return {
        "name": about.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": cores(),
        "instruction_sets": [name for name, needed in _INSTRUCTION_SETS.items() if needed <= features],
        "multiplies_bfloat16": bool(features & _BFLOAT16) if features else None,
    }


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    try:
        first = _CPUINFO.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _engine() -> dict[str, Any]:
    """`problem` is what keeps it from being used, None if nothing does."""
    engine: dict[str, Any] = {"problem": binding.why_not(), "isas": [], "isa": None}
    if engine["problem"] is None:
        engine["isas"] = binding.isas()
        try:
            engine["isa"] = binding.isa_wanted() or engine["isas"][0]
        except TrituneError as error:
            engine["problem"] = str(error)
    return engine


def _gpus() -> list[str]:
    """The names of NVIDIA's GPUs, asked of their driver: torch would take seconds."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
