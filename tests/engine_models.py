"""Tiny packed models of the families that the engine runs whole, and its loader as a program of its own."""

import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tritune
from tritune import Quantization
from zoo import SERVED

NATIVE = Path(tritune.__file__).parent / "engine" / "native"
DRIVERS = Path(__file__).parent / "native"
CORPUS = DRIVERS / "corpus"
# What load_model takes, and no kernel.
LOADER = ("json", "safetensors", "config", "quantization", "families", "fields", "weights", "model", "layout")

FAMILIES = {name: SERVED[name] for name in ("BERT", "RoBERTa", "XLM-R", "CamemBERT", "DistilBERT", "ELECTRA", "ViT")}
PER_TOKEN = {"weight_granularity": "row", "activation_granularity": "token"}
NULL = object()  # null as a value for `edited`
DEPLOY = Quantization(**PER_TOKEN, weight_quantizer="quaternary", weight_clip=None, activation_clip=None)
TERNARY = Quantization(activation_granularity="token")


def save_packed(
    family: str, index: int, quantization: Quantization, folder: Path, dtype: torch.dtype = torch.float32, **config: Any
) -> Path:
    """A packed model of the class `index` of a family in a folder, with values of its config changed."""
    row = replace(FAMILIES[family], values=FAMILIES[family].values | config)
    model = tritune.prepare(row.build(index=index), quantization)
    tritune.convert(model.eval(), dtype).save_pretrained(folder)
    return folder


def edited(folder: Path, to: Path, config: dict[str, Any] | None = None, tensors: dict | None = None) -> Path:
    """A copy with other values in its config ("quantization_config.x" is a key there) and tensors; None leaves one out.

    Its checksums are wrong: the engine's C++ does not look at them.
    """
    shutil.copytree(folder, to)
    values = json.loads((to / "config.json").read_text())
    for key, value in (config or {}).items():
        section = values["quantization_config"] if "." in key else values
        key = key.rpartition(".")[2]
        if value is None:
            del section[key]
        else:
            section[key] = None if value is NULL else value
    (to / "config.json").write_text(json.dumps(values))
    if tensors:
        own = load_file(to / "model.safetensors") | tensors
        own = {name: tensor for name, tensor in own.items() if tensor is not None}
        save_file(own, to / "model.safetensors", {"format": "pt"})
    return to


def as_one_file(folder: Path) -> bytes:
    """A model as the fuzzer reads it: 4 bytes for the length of its config, the config, the weights."""
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"].pop("checksums")  # of no use there, and most of the file
    config = json.dumps(values).encode()
    return len(config).to_bytes(4, "little") + config + (folder / "model.safetensors").read_bytes()


class Driver:
    """tests/native/load_driver.cpp, compiled into a folder.

    Skips the test where there is no compiler.
    """

    def __init__(self, folder: Path):
        compiler = next(filter(shutil.which, ("c++", "g++", "clang++")), None)
        if compiler is None:
            pytest.skip("no C++ compiler")
        self.program = folder / "load_driver"
        sources = [*(NATIVE / f"{name}.cpp" for name in LOADER), DRIVERS / "load_driver.cpp", DRIVERS / "fuzz_load.cpp"]
        command = [compiler, "-std=c++20", "-O1", "-Wall", "-Wextra", f"-I{NATIVE}"]

        def compiled(source: Path) -> str:
            made = str(folder / f"{source.stem}.o")
            subprocess.run([*command, "-c", str(source), "-o", made], check=True)
            return made

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            subprocess.run([*command, *pool.map(compiled, sources), "-o", str(self.program)], check=True)

    def say(self, *words: object) -> str:
        """What it prints; it must end well."""
        done = subprocess.run([self.program, *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr or f"ended with {done.returncode}"
        return done.stdout

    def dump(self, folder: Path) -> dict[str, Any]:
        """The model that the loader makes of a packed folder, or its refusal as an AssertionError."""
        said = self.say("dump", folder / "config.json", folder / "model.safetensors")
        assert said.startswith("{"), said
        return json.loads(said)

    def refusal(self, folder: Path) -> str:
        """Why the loader refuses a packed folder, in one line."""
        said = self.say("dump", folder / "config.json", folder / "model.safetensors")
        assert not said.startswith("{") and "\n" not in said, said[:200]
        return said
