"""The compiled library: where it lies, what its functions take, and why it may not be there.

`native/tritune_engine.h` says what the functions do; `setup.py` compiles them when the package is installed.
"""

import os
import sys
from ctypes import CDLL, Structure, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import TrituneError, first_line

LIBRARY = Path(__file__).with_name("libtritune_engine.so")
# Written by `setup.py` in the library's place.
NOTE = Path(__file__).with_name("not_compiled.txt")


_SHAPE = ("hidden_size", "outputs", "per_token", "max_tokens", "vocabulary", "channels", "image_size")


class Shape(Structure):
    """`tritune_shape`: what a model takes, and gives for a batch."""

    _fields_ = [(name, c_int64) for name in _SHAPE]


# Arrays are passed by their address, an int, or None for NULL; a message by a buffer of `ctypes.create_string_buffer`.
_MESSAGE = (c_char_p, c_size_t)
_QUANTIZER = (c_void_p, c_int, c_int64, c_float, c_float, c_void_p, c_int, c_void_p, c_void_p, c_void_p)
# Every function of the header: what it returns, what it takes.
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "tritune_isas": (c_char_p, ()),
    "tritune_load": (c_void_p, (c_char_p, c_size_t, c_void_p, c_size_t, c_char_p, *_MESSAGE)),
    "tritune_free": (None, (c_void_p,)),
    "tritune_describe": (Shape, (c_void_p,)),
    "tritune_isa": (c_char_p, (c_void_p,)),
    "tritune_run": (c_int, (*[c_void_p] * 5, c_int64, c_int, c_void_p, c_void_p, *_MESSAGE)),
    "tritune_run_images": (c_int, (c_void_p, c_void_p, c_int64, c_int, c_void_p, c_void_p, *_MESSAGE)),
    "tritune_linear_new": (
        c_void_p,
        (c_void_p, c_int64, c_int64, c_int32, c_int32, c_void_p, c_void_p, c_char_p, *_MESSAGE),
    ),
    "tritune_linear_free": (None, (c_void_p,)),
    "tritune_linear_run": (c_int, (c_void_p, c_void_p, c_int64, c_float, c_float, c_int, c_void_p, *_MESSAGE)),
    "tritune_linear_sums": (c_int, (c_void_p, c_void_p, c_int64, c_void_p, *_MESSAGE)),
    "tritune_uniform": (c_int, _QUANTIZER),
    "tritune_ternary": (c_int, _QUANTIZER),
}


def library() -> CDLL:
    """The library, with the types of its functions set; loaded once per process.

    Raises:
        TrituneError: it was not compiled or cannot be loaded; the message says why and what to do.
    """
    found = _found()
    if isinstance(found, str):
        raise TrituneError(found)
    return found


def available() -> bool:
    """Whether there is a library to load."""
    return why_not() is None


def why_not() -> str | None:
    """What keeps the library from being loaded and what to do about it; None if nothing does."""
    found = _found()
    return found if isinstance(found, str) else None


def isas() -> list[str]:
    """The instruction sets that the engine can use on this processor, best first.

    Raises:
        TrituneError: see `library`.
    """
    return library().tritune_isas().decode().split()


def isa_wanted() -> str | None:
    """The instruction set that the environment variable `TRITUNE_ISA` names; None without it, for the best one.

    Raises:
        TrituneError: this processor or this build does not have it; or see `library`.
    """
    wanted = os.environ.get("TRITUNE_ISA")
    if not wanted:
        return None
    if wanted not in isas():
        raise TrituneError(f"TRITUNE_ISA={wanted}: the engine does not run it here; it runs {', '.join(isas())}")
    return wanted


@cache
def _found() -> CDLL | str:
    """The library, or why there is none."""
    if sys.platform == "win32":
        return "the engine is compiled on Linux and macOS only"
    if not LIBRARY.exists():
        reason = NOTE.read_text(encoding="utf-8").strip() if NOTE.exists() else "nothing was built in this folder"
        return f"the engine was not compiled: {reason}; install g++ or clang++, then install tritune again"
    try:
        loaded = CDLL(str(LIBRARY))
        for name, (returned, taken) in _FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = returned, taken
    except (OSError, AttributeError) as error:
        return f"the engine cannot be loaded ({first_line(error)}); install tritune again"
    return loaded
