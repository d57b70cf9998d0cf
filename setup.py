"""Compiles the sources of the engine into one library; everything else about the package stands in pyproject.toml.

The library needs neither Python.h nor torch: `tritune.engine.binding` loads it by ctypes. Without a C++ compiler, or
with one that fails, the package is installed without it, and a note in its place says why.

`CXX` names another compiler; `CXXFLAGS` and `LDFLAGS` are added. After a change of the sources run
`python setup.py build_ext --inplace`.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError
from setuptools.modified import newer_group

PACKAGES, ENGINE = Path("src"), Path("tritune/engine")
NATIVE = PACKAGES / ENGINE / "native"
NAME = "tritune.engine.libtritune_engine"
LIBRARY, NOTE = ENGINE / "libtritune_engine.so", ENGINE / "not_compiled.txt"

# Sums are rounded as they are written, on every processor; nobody reads errno or the flags of floating-point errors.
FLAGS = (
    *("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden"),
    # Vectors are handed on within one file only, so it does not matter how.
    *("-Wall", "-Wextra", "-Wno-psabi"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)


def own_flags(source: Path) -> list[str]:
    """What the first line of a source asks for: files of one instruction set have flags that no other file may have."""
    first, _, _ = source.read_text(encoding="utf-8").partition("\n")
    return first.removeprefix("// flags:").split() if first.startswith("// flags:") else []


class Compiler:
    """The C++ compiler at hand.

    Raises:
        CompileError: there is none.
    """

    def __init__(self) -> None:
        own = shlex.split(os.environ.get("CXX", ""))
        commands = [own] if own else [["c++"], ["g++"], ["clang++"]]
        found = next((command for command in commands if shutil.which(command[0])), None)
        if found is None:
            raise CompileError(f"no C++ compiler was found ({' or '.join(command[0] for command in commands)})")
        self.command = found
        self.flags = [*shlex.split(os.environ.get("CXXFLAGS", "")), *FLAGS]

    def compile(self, source: Path, folder: Path, headers: list[Path]) -> Path:
        """The object of a source, made anew if the source, a header or the command has changed."""
        flags = [*self.flags, *self._accepted(own_flags(source))]
        digest = hashlib.sha256(repr((self.command, flags)).encode()).hexdigest()[:8]
        made = folder / f"{source.stem}-{digest}.o"
        if newer_group([str(source), *map(str, headers)], str(made)):
            self._run(*flags, "-c", source, "-o", made)
        return made

    def link(self, objects: list[Path], library: Path) -> None:
        """The shared library of all objects, which finds every name that it uses."""
        checks = ["-Wl,-z,defs"] if sys.platform == "linux" else []
        options = ["-shared", "-pthread", *checks, *shlex.split(os.environ.get("LDFLAGS", ""))]
        self._run(*self.flags, *objects, *options, "-o", library)
        if not library.exists():
            raise CompileError(f"the C++ compiler {self.command[0]} makes no library")

    def _accepted(self, flags: list[str]) -> list[str]:
        """The flags, or none if the compiler does not know them; the file then has nothing to offer."""
        probe = [*self.command, *flags, "-x", "c++", "-c", os.devnull, "-o", os.devnull]
        return flags if subprocess.run(probe, capture_output=True).returncode == 0 else []

    def _run(self, *arguments: object) -> None:
        command = [*self.command, *map(str, arguments)]
        english = os.environ | {"LC_ALL": "C"}
        done = subprocess.run(command, env=english, capture_output=True, text=True, errors="replace")
        sys.stderr.write(done.stderr)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if " error:" in line or "undefined reference" in line]
            reason = said[0] if said else f"exit code {done.returncode}"
            raise CompileError(f"the C++ compiler {self.command[0]} fails: {reason}")


class BuildNative(build_ext):
    """All sources to one library, whose name says nothing of a version of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        """Where the library lies among the packages."""
        return str(LIBRARY)

    def run(self) -> None:
        """Build, and with `--inplace` copy what was built; setuptools' own compiler, which is for C, is not asked."""
        for extension in self.extensions:
            self.build_extension(extension)
        if self.inplace:
            self.copy_extensions_to_source()

    def build_extension(self, ext: Extension) -> None:
        """Compile and link; or leave a note that says why not."""
        library, note = Path(self.build_lib, LIBRARY), Path(self.build_lib, NOTE)
        objects = Path(self.build_temp)
        for folder in (library.parent, objects):
            folder.mkdir(parents=True, exist_ok=True)
        for old in (library, note):
            old.unlink(missing_ok=True)
        try:
            compiler, headers = Compiler(), sorted(NATIVE.glob("*.h"))
            with ThreadPoolExecutor(self.parallel or os.cpu_count()) as pool:
                made = pool.map(lambda source: compiler.compile(Path(source), objects, headers), ext.sources)
                compiler.link([*made], library)
        except (CompileError, OSError, ValueError) as error:
            library.unlink(missing_ok=True)
            note.write_text(f"{error}\n", encoding="utf-8")
            self.warn(f"tritune is installed without its native library: {error}")
            self.distribution.ext_modules = []  # so that the wheel is one for every platform

    def copy_extensions_to_source(self) -> None:
        """For `--inplace` and editable installations. What lies there may be in use: it is replaced, not written to."""
        for name in (LIBRARY, NOTE):
            made, own = Path(self.build_lib, name), PACKAGES / name
            if made.exists():
                shutil.copy(made, own.with_suffix(".new"))
                own.with_suffix(".new").replace(own)
            else:
                own.unlink(missing_ok=True)


class Wheel(bdist_wheel):
    """For one platform and every Python 3 if it holds the library, else for all platforms."""

    def run(self) -> None:
        """Build first: only then is it known which."""
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Tags of the Python, its ABI and the platform."""
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


SOURCES = sorted(map(str, NATIVE.glob("*.cpp")))
setup(
    ext_modules=[] if sys.platform == "win32" else [Extension(NAME, SOURCES)],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
)
