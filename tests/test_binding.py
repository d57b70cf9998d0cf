"""The compiled library as Python sees it: the types of its functions are the header's, and its absence has a reason."""

import re
import subprocess
import sys
from ctypes import CFUNCTYPE, Structure, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p, cast

import pytest

from tritune.engine import binding
from tritune.errors import TrituneError

HEADER = binding.LIBRARY.parent / "native" / "tritune_engine.h"
NUMBERS = {"int": c_int, "int32_t": c_int32, "int64_t": c_int64, "size_t": c_size_t, "float": c_float}


def declarations() -> dict[str, tuple[str, list[str]]]:
    """Function of the header to the type that it returns and those of its arguments, as C writes them."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    found = re.findall(r"TRITUNE_API ([\w *]+?)(\w+)\(([^)]*)\);", text)
    return {
        name: (
            returned.strip(),
            [re.sub(r"\w+$", "", one.strip()).strip() for one in taken.split(",") if one != "void"],
        )
        for returned, name, taken in found
    }


def python_type(written: str, returned: bool = False) -> object:
    if written in NUMBERS:
        return NUMBERS[written]
    if written == "const char*" or (written == "char*" and not returned):
        return c_char_p
    if written == "void":
        return None
    return binding.Shape if written == "tritune_shape" else c_void_p


def test_the_functions_are_those_of_the_header():
    expected = {
        name: (python_type(returned, returned=True), tuple(map(python_type, taken)))
        for name, (returned, taken) in declarations().items()
    }
    assert len(expected) >= 12
    assert expected == binding._FUNCTIONS


def test_the_shape_is_that_of_the_header():
    (body,) = re.findall(r"typedef struct \{(.*?)\} tritune_shape;", HEADER.read_text(), flags=re.DOTALL)
    fields = re.findall(r"int64_t\s+(\w+);", body)
    assert issubclass(binding.Shape, Structure) and binding.Shape._fields_ == [(name, c_int64) for name in fields]


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """No library yet, and nothing remembered of the one that was found before."""
    monkeypatch.setattr(binding, "LIBRARY", tmp_path / "library.so")
    monkeypatch.setattr(binding, "NOTE", tmp_path / "note.txt")
    binding._found.cache_clear()
    yield tmp_path
    binding._found.cache_clear()


def refused() -> str:
    """What a caller is told, in one line."""
    with pytest.raises(TrituneError) as error:
        binding.library()
    assert not binding.available() and binding.why_not() == str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_a_note_nothing_was_built(elsewhere):
    assert refused().startswith("the engine was not compiled: nothing was built in this folder; install g++")


def test_a_note_says_why(elsewhere):
    binding.NOTE.write_text("the C++ compiler c++ fails: exit code 3\n")
    assert refused().startswith("the engine was not compiled: the C++ compiler c++ fails: exit code 3; install g++")


def test_a_damaged_library_is_refused(elsewhere):
    binding.LIBRARY.write_bytes(b"no library")
    assert re.match(r"the engine cannot be loaded \(.*library\.so.*\); install tritune again", refused())


@pytest.mark.native
def test_a_library_of_other_functions_is_refused(monkeypatch):
    functions = {**binding._FUNCTIONS, "tritune_nope": (c_int, ())}
    monkeypatch.setattr(binding, "_FUNCTIONS", functions)
    binding._found.cache_clear()
    assert re.search(r"cannot be loaded \(.*tritune_nope\); install tritune again", refused())
    monkeypatch.undo()
    binding._found.cache_clear()
    assert binding.available()


def test_on_windows_there_is_none(elsewhere, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert refused() == "the engine is compiled on Linux and macOS only"


@pytest.mark.native
def test_an_instruction_set_is_one_that_runs_here(monkeypatch):
    monkeypatch.delenv("TRITUNE_ISA", raising=False)
    assert binding.isa_wanted() is None
    assert binding.isas()[-1] == "scalar"
    for name in binding.isas():
        monkeypatch.setenv("TRITUNE_ISA", name)
        assert binding.isa_wanted() == name
    monkeypatch.setenv("TRITUNE_ISA", "mmx")
    with pytest.raises(TrituneError, match=r"^TRITUNE_ISA=mmx: .*; it runs .*scalar$"):
        binding.isa_wanted()


def test_neither_torch_nor_numpy_is_imported():
    code = "import sys; from tritune.engine import binding; binding.available(); print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "numpy", "transformers"} & set(imported) == set()


@pytest.mark.native
def test_the_callback_has_the_type_of_the_header():
    """A team that Python makes: called twice, with what the caller asked for; each call does all that is left."""
    import numpy as np

    asked = []

    @CFUNCTYPE(None, CFUNCTYPE(None, c_void_p), c_void_p, c_int, c_int)
    def team(work, data, threads, flags):
        asked.append((threads, flags))
        work(data)

    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    found = []
    for chosen, threads in ((None, 1), (team, 3)):
        codes, numbers = np.empty(values.size, np.uint16), np.empty(2, np.float32)
        address = None if chosen is None else cast(chosen, c_void_p)
        numbers_at = numbers.ctypes.data
        arguments = (values.ctypes.data, 0, values.size, 2.5, 0.7, address, threads, codes.ctypes.data)
        assert binding.library().tritune_ternary(*arguments, numbers_at, numbers_at + 4) == 0
        found.append((codes, numbers))
    assert asked == [(3, 0), (3, 0)]
    assert all(np.array_equal(*pair) for pair in zip(*found, strict=True))
