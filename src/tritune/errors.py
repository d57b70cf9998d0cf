"""The errors a user sees, and how lines for people show values.

Every one of them is a single line that names the file, row or key at fault and says what to do; the command line
prints that line and leaves with exit code 2.
"""

import reprlib
from collections.abc import Collection
from typing import Any

# What a message about an unknown name says of those that a user may have registered.
OWN = " (one of your own needs --plugin, or the import of its module)"
_SCALES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 60


def shown(value: Any) -> str:
    """A value as a message shows it: its repr, cut so that the message stays one readable line whatever a file holds.

    >>> shown([1, 2])
    '[1, 2]'
    """
    try:
        return _brief.repr(value)
    except ValueError:
        return "a number of thousands of digits"


def first_line(error: BaseException) -> str:
    r"""What a library says of its error, cut to one line; the error's type where it says nothing.

    >>> first_line(OSError("the disk is full\nsee the manual")), first_line(KeyError())
    ('the disk is full', 'KeyError')
    """
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return "".join(character if character.isprintable() else "?" for character in line.strip()[:200])


def number_of(number: int, what: str) -> str:
    """A number of things, whose name is given in the plural.

    >>> number_of(1, "rows"), number_of(2, "rows")
    ('1 row', '2 rows')
    """
    return f"{number} {what.removesuffix('s') if number == 1 else what}"


def on_one_line(text: str, most: int = 60) -> str:
    r"""A text as it can stand within a line: without line ends and control characters, its beginning if it is long.

    >>> on_one_line("two\nlines"), on_one_line("abcdef", 4)
    ('two lines', 'abc…')
    """
    words = "".join(letter if letter.isprintable() or letter.isspace() else "?" for letter in text).split()
    line = " ".join(words)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def readable(size_bytes: int) -> str:
    """Bytes in decimal units.

    >>> readable(12_345_678)
    '12.3 MB'
    """
    for unit, name in _SCALES:
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} B"


def check_among(values: object, key: str, allowed: Collection[str | None], hint: str = "") -> None:
    """Raise TrituneError if the attribute `key` of `values` is not one of `allowed`; the message ends with `hint`."""
    if (value := getattr(values, key)) not in allowed:
        known = ", ".join(map(str, allowed))
        raise TrituneError(f"{key} must be one of {known}{hint}; got {shown(value)}")


def check_new_name(where: str, name: object, taken: Collection[str]) -> None:
    """Check a name that a user's own part wants in a table.

    Args:
        where: what the message begins with.
        name: letters, digits and underscores.
        taken: the names that others have.

    Raises:
        TrituneError: it is no such name, or is taken.
    """
    if not (isinstance(name, str) and name.isidentifier()):
        raise TrituneError(f"{where}: a name is made of letters, digits and underscores; got {shown(name)}")
    if name in taken:
        raise TrituneError(f"{where}: the name {name} is taken; choose another, or exist_ok=True to replace your own")


class TrituneError(ValueError):
    """Something the user gave cannot be used; the message says what, where, and what to do about it."""


class UnsupportedModelError(TrituneError):
    """The model's architecture cannot be served; the message names the model class and the reason."""


class CannotWriteError(TrituneError):
    """A folder cannot be written to, or belongs to another process just now; what was saved before is whole."""


class Interrupted(TrituneError):
    """A person or a cluster asked the work to stop; the message says how to go on. Exit code 130."""
