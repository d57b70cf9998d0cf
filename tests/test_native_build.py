"""`setup.py`: one library of all sources, or an installation without it where no compiler is."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tritune.engine import binding

ROOT = Path(__file__).parents[1]
NATIVE = Path("src/tritune/engine/native")
LIBRARY, NOTE = NATIVE.parent / binding.LIBRARY.name, NATIVE.parent / binding.NOTE.name
SOURCES = {
    "common.h": '#define API extern "C" __attribute__((visibility("default")))\nint answer();\n',
    "answer.cpp": "int answer() { return 42; }\n",
    "wide.cpp": """// flags: -DWIDE
#include "common.h"
#ifdef WIDE
API int wide() { return answer(); }
#endif
""",
    "strange.cpp": """// flags: -DSTRANGE -mno-such-processor
#include "common.h"
#ifdef STRANGE
#error
#endif
API int strange() { return 7; }
""",
}

pytest.importorskip("setuptools.command.bdist_wheel")
needs_compiler = pytest.mark.skipif(
    sys.platform == "win32" or not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler"
)


class Project:
    """tritune's own setup with a few lines of C++ in place of the engine."""

    def __init__(self, root: Path):
        self.root = root
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, root / name)
        (root / NATIVE).mkdir(parents=True)
        for folder in (NATIVE.parents[1], NATIVE.parent):
            (root / folder / "__init__.py").touch()
        for name, text in SOURCES.items():
            (root / NATIVE / name).write_text(text)

    def run(self, *arguments: str, **environment: str) -> str:
        """What `python ARGUMENTS` says; it must succeed."""
        clean = {name: value for name, value in os.environ.items() if name not in ("CXX", "CXXFLAGS", "LDFLAGS")}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=self.root, env=clean | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def build(self, **environment: str) -> str:
        return self.run("setup.py", "build_ext", "--inplace", **environment)

    def make(self, kind: str, **environment: str) -> Path:
        """What pip asks of setuptools: a `wheel`, an `editable` wheel, or an `sdist`."""
        (self.root / "out").mkdir(exist_ok=True)
        code = f"from setuptools import build_meta; print('made', build_meta.build_{kind}('out'))"
        return self.root / "out" / re.findall(r"^made (.*)$", self.run("-c", code, **environment), re.MULTILINE)[0]


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def compiler(tmp_path):
    """Makes a script that stands in for the compiler, and returns its path."""

    def script(text: str) -> str:
        path = tmp_path / "compiler"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    return script


@needs_compiler
def test_all_sources_become_one_library(project):
    project.build()
    made = ctypes.CDLL(str(project.root / LIBRARY))
    assert made.wide() == 42, "a file's own flags"
    assert made.strange() == 7, "none, where the compiler does not know them"
    assert not (project.root / NOTE).exists()
    with pytest.raises(AttributeError):
        _ = made.answer


@needs_compiler
def test_only_what_has_changed_is_compiled_again(project, tmp_path, compiler):
    real = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    logging = compiler(f'echo "$@" >> {tmp_path}/log; exec {real} "$@"')

    def compiled() -> set[str]:
        (tmp_path / "log").write_text("")
        project.build(CXX=logging)
        return set(re.findall(r"-c \S*/(\w+)\.cpp", (tmp_path / "log").read_text()))

    everything = {"answer", "wide", "strange"}
    assert compiled() == everything and compiled() == set()
    os.utime(project.root / NATIVE / "wide.cpp", (2**32, 2**32))
    assert compiled() == {"wide"}
    os.utime(project.root / NATIVE / "common.h", (2**32, 2**32))
    assert compiled() == everything


@needs_compiler
def test_other_flags_compile_again(project):
    for flags, value in (("-DANSWER=1", 1), ("-DANSWER=2", 2)):
        (project.root / NATIVE / "answer.cpp").write_text("int answer() { return ANSWER; }\n")
        os.utime(project.root / NATIVE / "answer.cpp", (0, 0))
        project.build(CXXFLAGS=flags)
        assert ctypes.CDLL(str(shutil.copy(project.root / LIBRARY, project.root / f"{value}.so"))).wide() == value


INCLUDED = "In file included from /usr/include/c++/12/system_error:44,"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 3", r"the C\+\+ compiler .*/compiler fails: exit code 3"),
        (
            f"echo '{INCLUDED}' >&2; echo 'a.cpp:1: error: no such thing' >&2; exit 1",
            "fails: a.cpp:1: error: no such thing",
        ),
        (r"printf 'x: error: caf\351\n' >&2; exit 1", "fails: x: error: caf.?"),
        ("exit 0", "makes no library"),
    ],
)
def test_a_compiler_that_fails_leaves_a_note(project, compiler, script, message):
    (project.root / LIBRARY).write_bytes(b"of older sources")
    said = project.build(CXX=compiler(script))
    note = (project.root / NOTE).read_text()
    assert re.search(f"{message}\n$", note) and note.count("\n") == 1
    assert f"tritune is installed without its native library: {note}" in said
    assert not (project.root / LIBRARY).exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("/no/such/compiler", r"no C\+\+ compiler was found \(/no/such/compiler\)"),
        ('g++ "x', "No closing quotation"),
    ],
)
def test_a_compiler_that_is_none(project, value, message):
    project.build(CXX=value)
    assert re.search(message, (project.root / NOTE).read_text())


@pytest.mark.parametrize("value", ["", " "])
def test_without_a_compiler_on_the_path(project, tmp_path, value):
    project.build(PATH=str(tmp_path), CXX=value)
    assert (project.root / NOTE).read_text() == "no C++ compiler was found (c++ or g++ or clang++)\n"


@needs_compiler
@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_a_wheel_is_for_a_platform_if_it_holds_the_library(project, kind):
    wheel = project.make(kind)
    assert re.search(r"-py3-none-(linux|macosx)\w+\.whl$", wheel.name)
    with ZipFile(wheel) as archive:
        files = archive.namelist()
    inside = binding.LIBRARY.name in {Path(name).name for name in files}
    assert inside == (kind == "wheel") and (project.root / LIBRARY).exists() == (kind == "editable")


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_without_a_compiler_the_wheel_is_for_every_platform(project, kind, compiler):
    (project.root / LIBRARY).write_bytes(b"of older sources")
    wheel = project.make(kind, CXX=compiler("exit 3"))
    with ZipFile(wheel) as archive:
        files = archive.namelist()
        (about,) = (archive.read(name) for name in files if name.endswith("/WHEEL"))
    assert not any(name.endswith(".so") for name in files)
    if kind == "wheel":
        assert wheel.name.endswith("-py3-none-any.whl") and b"Root-Is-Purelib: true" in about
        assert "tritune/engine/not_compiled.txt" in files
    else:
        assert (project.root / NOTE).exists() and not (project.root / LIBRARY).exists()


def test_a_source_distribution_holds_the_sources(project):
    import tarfile

    with tarfile.open(project.make("sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", *(f"{NATIVE}/{name}" for name in SOURCES)} <= names


@needs_compiler
@pytest.mark.slow
def test_files_of_one_instruction_set_share_no_function_with_others(tmp_path):
    """The linker keeps one copy of an inline function: it could be one that the oldest processor cannot run."""
    build = [sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path / "lib", "--build-temp", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    shared = {}
    for made in tmp_path.glob("kernels_*.o"):
        lines = subprocess.run(["nm", "-C", made], capture_output=True, text=True, check=True).stdout.splitlines()
        isa = made.name.removeprefix("kernels_").partition("-")[0]
        weak = [found[1] for line in lines if (found := re.match(r"\w+ [VWu] (.*)", line))]
        shared[isa] = [name for name in weak if not re.search(rf"tritune::{isa}::|^DW\.ref\.", name)]
    assert {"scalar", "avx2"} <= shared.keys()
    assert {isa: names for isa, names in shared.items() if names} == {}
