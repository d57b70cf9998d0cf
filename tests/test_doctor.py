"""`tritune doctor`: what it finds, what it makes of it, and that no machine is too strange for it."""

import json
import subprocess

import pytest

from tritune.cli import doctor
from tritune.engine import binding

INFO = """processor\t: 0
model name\t: Some Processor
flags\t\t: fpu sse2 fma f16c avx2 avx512f avx512bw avx512vl avx512dq avx512_vnni avx512_bf16

processor\t: 1
model name\t: Another
flags\t\t: amx_tile amx_int8
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp bf16\n"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in doctor._VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def without_library(monkeypatch, tmp_path):
    monkeypatch.setattr(binding, "LIBRARY", tmp_path / "none.so")
    monkeypatch.setattr(binding, "NOTE", tmp_path / "note.txt")
    binding.NOTE.write_text("no C++ compiler was found (c++)\n")
    binding._found.cache_clear()
    yield
    binding._found.cache_clear()


def found(**changes: dict) -> dict:
    """A machine on which all is well, and what is otherwise."""
    well = {
        "processor": {"cores": 4, "instruction_sets": ["avx512vnni", "avx2"]},
        "engine": {"problem": None, "isas": ["avx512vnni", "avx2", "scalar"], "isa": "avx512vnni"},
        "versions": {"torch": "2.13.0+cpu"},
        "gpus": [],
        "environment": {},
    }
    return well | {name: well[name] | new if isinstance(new, dict) else new for name, new in changes.items()}


def cpuinfo(monkeypatch, tmp_path, text: str) -> dict:
    """The processor that Linux would describe so."""
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(doctor, "_CPUINFO", tmp_path / "cpuinfo")
    return doctor._processor()


def test_a_processor_by_what_linux_says(monkeypatch, tmp_path):
    processor = cpuinfo(monkeypatch, tmp_path, INFO)
    assert processor["name"] == "Some Processor" and processor["instruction_sets"] == ["avx512vnni", "avx2"]
    assert processor["multiplies_bfloat16"] is True and processor["cores"] >= 1
    processor = cpuinfo(monkeypatch, tmp_path, INFO.replace("avx512_vnni avx512_bf16", "amx_tile"))
    assert processor["instruction_sets"] == ["avx2"] and processor["multiplies_bfloat16"] is False
    processor = cpuinfo(monkeypatch, tmp_path, ARM)
    assert processor["instruction_sets"] == ["neon"] and processor["multiplies_bfloat16"] is True


def test_a_processor_of_which_nothing_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_CPUINFO", tmp_path / "none")
    processor = doctor._processor()
    assert processor["name"] and processor["instruction_sets"] == [] and processor["multiplies_bfloat16"] is None


@pytest.mark.native
def test_the_processor_and_the_engine_agree():
    """What the engine finds by CPUID is what Linux says, but for files that the compiler could not build."""
    machine = doctor.examine()
    assert set(machine["engine"]["isas"]) <= {*machine["processor"]["instruction_sets"], "scalar"}
    assert machine["engine"]["isa"] == machine["engine"]["isas"][0]


def test_where_all_is_well_there_is_no_advice():
    assert doctor.advice(found()) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"engine": {"isa": "avx2"}}, "TRITUNE_ISA=avx2: avx512vnni is faster here; unset it"),
        (
            {"engine": {"isas": ["scalar"], "isa": "scalar"}},
            "the engine does not use avx512vnni, avx2, which the processor has: a newer g++ or clang++ may know it",
        ),
        (
            {"engine": {"isas": [], "isa": None}},
            "without the engine, packed models run in torch, and training in bfloat16 has no kernels",
        ),
        (
            {"environment": {"TRITUNE_ENGINE": "reference"}},
            "TRITUNE_ENGINE=reference: packed models run in torch; unset it for the engine",
        ),
        (
            {"environment": {"OMP_NUM_THREADS": "8"}},
            "OMP_NUM_THREADS=8: threads wait for each other on 4 cores; lower it",
        ),
        ({"environment": {"OMP_NUM_THREADS": "1"}}, "OMP_NUM_THREADS=1: training uses no more of 4 cores"),
        (
            {"gpus": ["A100"]},
            "torch is a build for CPUs: training does not use the GPU; install a build for CUDA",
        ),
    ],
)
def test_what_would_be_faster(changes, line):
    assert doctor.advice(found(**changes)) == [line]


@pytest.mark.parametrize("threads", ["4", "four", "", "4,2"])
def test_settings_that_do_no_harm(threads):
    assert doctor.advice(found(environment={"OMP_NUM_THREADS": threads})) == []


def test_the_command_without_the_library(cli, without_library):
    reason = "the engine was not compiled: no C++ compiler was found (c++); install g++ or clang++"
    code, out, _ = cli("doctor")
    assert code == 0 and reason in " ".join(out.split())
    code, out, _ = cli("doctor", "--json")
    machine = json.loads(out)
    assert code == 0 and machine["engine"] == {"problem": machine["advice"][0], "isas": [], "isa": None}
    assert machine["advice"][0].startswith(reason)


@pytest.mark.native
def test_the_command_with_settings(cli, monkeypatch):
    monkeypatch.setenv("TRITUNE_ISA", "mmx")
    monkeypatch.setenv("OMP_NUM_THREADS", "[red]9999[/red]")
    code, out, _ = cli("doctor")
    assert code == 0 and "TRITUNE_ISA=mmx: the engine does not run it here" in out
    assert "[red]9999[/red]" in out and "0.1.0" in out


@pytest.mark.parametrize("script", ["echo 'NVIDIA A100'; echo 'NVIDIA H100'", "exit 9", "echo failed; exit 1"])
def test_gpus_are_those_of_the_driver(monkeypatch, tmp_path, script):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert doctor._gpus() == (["NVIDIA A100", "NVIDIA H100"] if "A100" in script else [])


def test_a_driver_that_does_not_answer(monkeypatch):
    def late(*_, **__):
        raise subprocess.TimeoutExpired("nvidia-smi", 10)

    monkeypatch.setattr(doctor.shutil, "which", lambda name: name)
    monkeypatch.setattr(doctor.subprocess, "run", late)
    assert doctor._gpus() == []
