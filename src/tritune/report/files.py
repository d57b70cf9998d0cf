"""Reads the files of a run folder; what cannot be read is one line that names the file."""

import json
from pathlib import Path
from typing import Any

from ..errors import TrituneError, shown

# No number that a run writes is larger.
_LARGEST = 2**63


def read_bytes(path: Path) -> bytes:
    """A file; raises TrituneError if it is not there or may not be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrituneError(f"{path}: cannot be read ({error.strerror})") from None


def read_text(path: Path) -> str:
    """A text file; raises TrituneError as `read_bytes`, or if it is not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise TrituneError(f"{path}: cannot be read (not UTF-8)") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; NaN and infinities are numbers.

    Raises:
        TrituneError: the file cannot be read or holds something else.
    """
    text = read_text(path)
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise TrituneError(f"{path}{where}: not JSON") from None
    except ValueError:
        raise TrituneError(f"{path}: a number of thousands of digits") from None
    if not isinstance(values, dict):
        raise TrituneError(f"{path}: must hold a JSON object, got {shown(values)}")
    return values


def is_number(value: Any) -> bool:
    """Whether it can be drawn and written out; truth values are no numbers.

    >>> is_number(float("nan")), is_number(10**400), is_number(True)
    (True, False, False)
    """
    return isinstance(value, float) or (type(value) is int and abs(value) < _LARGEST)
