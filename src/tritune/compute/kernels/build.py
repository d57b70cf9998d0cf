"""Compile `quantizers.cpp` with the C++ compiler at hand and load it: some seconds, once per version of torch.

torch's own builder is not used: it needs ninja, and a process killed while it compiles leaves a lock that every later
one waits for. Here each process compiles into a folder of its own and moves what is whole into its place.
"""

import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock

import torch

from ...errors import TrituneError, first_line

SOURCE = Path(__file__).with_name("quantizers.cpp")
_FLAGS = (
    *("-std=c++20", "-O3", "-fPIC", "-shared", "-fopenmp"),
    # Rounding and NaN as in torch's own kernels; nobody reads the processor's flags of floating-point errors.
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
    f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
)

# Two threads may need them at the same moment; loaded from two places torch would end the process.
_LOADING = Lock()


def load_kernels() -> None:
    """Make the operators `torch.ops.tritune_kernels` known, compiling them if no earlier process did.

    The library is kept where torch keeps extensions: in `TORCH_EXTENSIONS_DIR`, or in the user's folder of caches.

    Raises:
        TrituneError: there is no C++ compiler (`CXX`, or c++) or it fails; the message says why.
    """
    if reason := _why_not():
        raise TrituneError(f"fused kernels: {reason}")


@cache
def kernels_available() -> bool:
    """Whether they can be loaded; where a compiler could help, a warning says once why not."""
    if (reason := _why_not()) and sys.platform == "linux":
        warnings.warn(
            f"fused kernels: {reason}; training goes on without them, somewhat slower; fused_kernels: false is silent",
            stacklevel=2,
        )
    return reason is None


def _why_not() -> str | None:
    """Load the kernels; what keeps them from being loaded, once for the whole process, or None."""
    with _LOADING:
        return _failure()


@cache
def _failure() -> str | None:
    if sys.platform != "linux":
        return f"they are built only on Linux, and this is {sys.platform}"
    try:
        _load_or_compile()
    except TrituneError as error:
        return str(error)
    except (OSError, ValueError, ImportError) as error:
        return f"they cannot be compiled here ({first_line(error)})"
    return None


def _load_or_compile() -> None:
    # Half a second, and it looks for compilers.
    from torch.utils.cpp_extension import get_cxx_compiler, get_default_build_root, include_paths, library_paths

    compiler = [*shlex.split(get_cxx_compiler()), *_FLAGS]
    version = (SOURCE.read_text(encoding="utf-8"), torch.__version__, platform.machine(), *compiler)
    name = f"quantizers-{hashlib.sha256(repr(version).encode()).hexdigest()[:16]}.so"
    library = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()) / "tritune" / name
    with suppress(OSError):  # missing or broken: compile it
        return torch.ops.load_library(library)
    with suppress(OSError):
        library.parent.mkdir(parents=True, exist_ok=True)
    keeps = os.access(library.parent, os.W_OK)
    with tempfile.TemporaryDirectory(dir=library.parent if keeps else None) as folder:
        built = Path(folder) / name
        where = (*(f"-I{path}" for path in include_paths()), str(SOURCE), "-o", str(built))
        libraries = (*(f"-L{path}" for path in library_paths()), "-ltorch_cpu", "-lc10")
        _run([*compiler, *where, *libraries])
        torch.ops.load_library(built)
        if keeps:
            built.replace(library)


def _run(compiler: list[str]) -> None:
    english = os.environ | {"LC_ALL": "C"}
    try:
        subprocess.run(compiler, env=english, capture_output=True, text=True, errors="replace", check=True)
    except OSError as error:
        raise TrituneError(f"no C++ compiler was found ({first_line(error)}); install g++") from error
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if " error:" in line]
        reason = first_line(ValueError(said[0])) if said else f"exit code {error.returncode}"
        raise TrituneError(f"the C++ compiler {compiler[0]} fails: {reason}") from error
