"""The engine's products as functions of numpy arrays, compiled for the tests, and random products to give to them."""

import ast
import ctypes
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tritune

ROOT = Path(__file__).parents[1]
NATIVE = Path(tritune.__file__).parent / "engine" / "native"
DRIVERS = Path(__file__).parent / "native"
ISAS = ("amx", "avx512vnni", "avxvnni", "avx2", "neon", "scalar")
# What products and panels take of the engine.
SOURCES = [NATIVE / "isa.cpp", NATIVE / "layout.cpp", *sorted(NATIVE.glob("kernels_*.cpp"))]
PIPE = DRIVERS / "kernel_pipe.cpp"
PANEL_ROWS, GROUP = 16, 64
# What weights of 2 bits may have as step and first code: ternary, binary, quaternary, and two's complement.
CODES_OF_FIELDS = ((1, -1), (2, -1), (2, -3), (1, -2))


def shipped_flags() -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """The flags of all sources and those of single ones, as setup.py takes them; all but the optimization."""
    own: dict[str, Any] = {}
    wanted = [line for line in ast.parse((ROOT / "setup.py").read_text()).body if _names(line) & {"FLAGS", "own_flags"}]
    exec(compile(ast.Module(wanted, []), "setup.py", "exec"), {"Path": Path}, own)
    of_sources = {source.stem: tuple(own["own_flags"](source)) for source in NATIVE.glob("*.cpp")}
    return [flag for flag in own["FLAGS"] if not flag.startswith("-O")], of_sources


def _names(line: ast.stmt) -> set[str]:
    """What a line at the top of a file defines."""
    if isinstance(line, ast.FunctionDef):
        return {line.name}
    return {target.id for target in getattr(line, "targets", ()) if isinstance(target, ast.Name)}


def compiler() -> str:
    """The C++ compiler; skips the test where there is none."""
    found = next(filter(shutil.which, (os.environ.get("CXX") or "c++", "g++", "clang++")), None)
    if found is None:
        pytest.skip("no C++ compiler")
    return found


def compiled(folder: Path, command: str, sources: list[Path], own_flags: dict[str, tuple[str, ...]]) -> list[str]:
    """The objects of sources."""
    flags, _ = shipped_flags()

    def object_of(source: Path) -> str:
        made = str(folder / f"{source.stem}.o")
        own = [*flags, "-O1", *own_flags.get(source.stem, ()), f"-I{NATIVE}", f"-I{DRIVERS}"]
        subprocess.run([command, *own, "-c", str(source), "-o", made], check=True)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [*pool.map(object_of, sources)]


def flags_for(machine: str) -> dict[str, tuple[str, ...]]:
    """The flags of single sources that a compiler for these machines knows."""
    is_known = {"x86_64": lambda name: name != "kernels_neon", "aarch64": lambda name: name == "kernels_neon"}
    known = is_known.get(machine, lambda name: False)
    return {name: flags for name, flags in shipped_flags()[1].items() if known(name)}


class _Product(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p if name != "x_stride" else ctypes.c_int64) for name in ("x", "x_stride", "x_scales")),
        ("x_sums", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("tokens", "rows", "columns")),
        *((name, ctypes.c_int32) for name in ("bits", "step", "first")),
        *((name, ctypes.c_void_p) for name in ("fields", "scales", "bias")),
        *((name, ctypes.c_int64) for name in ("first_panel", "end_panel", "out_stride")),
    )


def up_to(count: int, multiple: int) -> int:
    """The next multiple."""
    return -(-count // multiple) * multiple


@dataclass
class Product:
    """Codes x, (tokens, columns), times a weight of `fields`, (rows, columns): code = first + step * field.

    What lies beyond the last row and column is random in `panels`, and zero in `x`.
    """

    x: np.ndarray
    x_scales: np.ndarray
    fields: np.ndarray
    panels: np.ndarray
    bits: int
    step: int
    first: int
    scales: np.ndarray
    bias: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Tokens, rows and columns."""
        return len(self.x), *self.fields.shape

    @property
    def padded(self) -> np.ndarray:
        """The codes as kernels take them, (tokens, whole groups of 64)."""
        tokens, columns = self.x.shape
        padded = np.zeros((tokens, up_to(columns, GROUP)), np.int8)
        padded[:, :columns] = self.x
        return padded

    def sums(self) -> np.ndarray:
        """What is right, (tokens, rows), in 64 bits."""
        return self.x.astype(np.int64) @ (self.first + self.step * self.fields.astype(np.int64)).T

    def results(self) -> np.ndarray:
        """What is right, (tokens, rows), each operation rounded to float32."""
        rows = len(self.fields)
        return self.sums().astype(np.float32) * self.x_scales[:, None] * self.scales[:rows] + self.bias[:rows]


def panels_of(fields: np.ndarray, bits: int) -> np.ndarray:
    """Fields, (whole panels, whole groups), in the layout of `Weight`: from its description, index by index."""
    rows, columns = fields.shape
    shape = {2: (columns // 16, 4, 4), 8: (columns // 4, 1, 4)}[bits]
    # [panel][row n][block][j][k] to [panel][block][n][k], with j in the bits of a byte.
    blocks = fields.reshape(rows // PANEL_ROWS, PANEL_ROWS, *shape).transpose(0, 2, 1, 4, 3).astype(np.uint32)
    bytes_ = (blocks << (2 * np.arange(shape[1], dtype=np.uint32))).sum(-1)
    return np.ascontiguousarray(bytes_.astype(np.uint8))


def random_product(tokens: int, rows: int, columns: int, bits: int = 2, seed: int = 0, kind: str = "random") -> Product:
    """`kind` "largest": all fields and all codes as large as they get; "zeros": every other row of codes is zero."""
    random = np.random.default_rng((seed, tokens, rows, columns, bits))
    x = random.integers(-127, 128, (tokens, columns))
    padded = random.integers(0, 2**bits, (up_to(rows, PANEL_ROWS), up_to(columns, GROUP)))
    step, first = CODES_OF_FIELDS[random.integers(len(CODES_OF_FIELDS))] if bits == 2 else (1, -128)
    if bits == 8:
        padded[:rows, :columns].clip(1, 255, padded[:rows, :columns])  # codes are within -127..127
    if kind == "largest":
        x = np.where(np.arange(tokens) % 2, 127, -127)[:, None] + 0 * x
        padded[:] = 2**bits - 1
    if kind == "zeros":
        x[::2] = 0
    count = len(padded)
    return Product(
        x=x.astype(np.int8),
        x_scales=random.uniform(1e-3, 2, tokens).astype(np.float32),
        fields=padded[:rows, :columns],
        panels=panels_of(padded, bits),
        bits=bits,
        step=step,
        first=first,
        scales=random.uniform(1e-3, 2, count).astype(np.float32),
        bias=random.normal(size=count).astype(np.float32),
    )


def with_doubled_scale(product: Product) -> Product:
    """Another product, wrong in one number: the scale of its last row."""
    scales = product.scales.copy()
    scales[len(product.fields) - 1] *= 2
    return replace(product, scales=scales)


class Probe:
    """tests/native/kernel_probe.cpp and the engine's kernels, compiled into a folder."""

    def __init__(self, folder: Path, own_flags: dict[str, tuple[str, ...]]):
        command = compiler()
        *self.objects, driver = compiled(folder, command, [*SOURCES, DRIVERS / "kernel_probe.cpp"], own_flags)
        subprocess.run([command, "-shared", *self.objects, driver, "-o", str(folder / "probe.so")], check=True)
        self.native = ctypes.CDLL(str(folder / "probe.so"))
        self.native.probe_chosen.restype = ctypes.c_char_p

    def isas(self) -> list[str]:
        """Those that run here, best first."""
        names = (ctypes.c_char_p * len(ISAS))()
        count = self.native.probe_isas(names, len(ISAS))
        return [name.decode() for name in names[:count]]

    def chosen(self, isa: str | None) -> str | None:
        """The instruction set that is taken when one is asked for, or none."""
        name = self.native.probe_chosen(None if isa is None else isa.encode())
        return None if name is None else name.decode()

    def has(self, isa: str) -> bool:
        """Whether the compiler could build it."""
        return bool(self.native.probe_has(isa.encode()))

    def sums(self, isa: str, product: Product, panels: slice | None = None) -> np.ndarray:
        """(tokens, rows) int32; those of other panels are -1."""
        return self._run(self.native.probe_sums, np.int32, isa, product, panels)

    def results(self, isa: str, product: Product, panels: slice | None = None) -> np.ndarray:
        """(tokens, rows) float32; those of other panels are -1."""
        return self._run(self.native.probe_linear, np.float32, isa, product, panels)

    def panels(self, name: str, values: np.ndarray, rows: int, columns: int, size: int) -> np.ndarray:
        """What `panels_of_{name}` makes of bytes, (rows, stride); of `size` bytes, all ones before."""
        out = np.full(size, 255, np.uint8)
        stride = () if name == "packed" else (ctypes.c_int64(values.strides[0]),)
        shape = (ctypes.c_int64(rows), ctypes.c_int64(columns))
        getattr(self.native, f"probe_panels_of_{name}")(_pointer(values), *stride, *shape, _pointer(out))
        return out

    def _run(self, function, dtype, isa: str, product: Product, panels: slice | None) -> np.ndarray:
        tokens, rows, columns = product.shape
        x, width = product.padded, up_to(rows, PANEL_ROWS)
        out = np.full((tokens, width), -1, dtype)
        panels = panels or slice(0, width // PANEL_ROWS)
        sums = x.sum(1, dtype=np.int32)
        own, weight = (x, x.strides[0], product.x_scales, sums), (product.panels, product.scales, product.bias)
        numbers = (tokens, rows, columns, product.bits, product.step, product.first)
        values = [*own, *numbers, *weight, panels.start, panels.stop, width]
        given = _Product(*(value.ctypes.data if isinstance(value, np.ndarray) else value for value in values))
        function(isa.encode(), ctypes.byref(given), _pointer(out))
        return out[:, :rows]


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def through_pipe(program: list[str], isa: str, products: list[Product]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sums and results, (tokens, rows), that PIPE gives for each product."""
    given = b""
    for product in products:
        x, numbers = product.padded, (product.bits, product.step, product.first)
        tokens, rows, columns = product.shape
        given += np.array([tokens, x.shape[1], rows, columns, *numbers], np.int64).tobytes()
        for array in (x, product.x_scales, x.sum(1, dtype=np.int32), product.panels, product.scales, product.bias):
            given += array.tobytes()
    done = subprocess.run([*program, isa], input=given, capture_output=True)
    assert done.returncode == 0, done.stderr or f"ended with {done.returncode}"
    answers, at = [], 0
    for product in products:
        tokens, rows, _ = product.shape
        shape = (tokens, up_to(rows, PANEL_ROWS))
        pair = []
        for dtype in (np.int32, np.float32):
            pair.append(np.frombuffer(done.stdout, dtype, shape[0] * shape[1], at).reshape(shape)[:, :rows])
            at += 4 * shape[0] * shape[1]
        answers.append((pair[0], pair[1]))
    return answers


def can_emulate() -> bool:
    """Whether this processor runs the instructions that stand in for those of AVX-VNNI and AMX."""
    info = Path("/proc/cpuinfo")
    return platform.machine() == "x86_64" and info.exists() and "avx512_vnni" in info.read_text()
