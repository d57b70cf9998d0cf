"""The errors a user sees.

Every one of them is a single line that names the file, row or key at fault and says what to do; the command line
prints that line and leaves with exit code 2.
"""


class TrituneError(ValueError):
    """Something the user gave cannot be used; the message says what, where, and what to do about it."""


class UnsupportedModelError(TrituneError):
    """The model's architecture cannot be served; the message names the model class and the reason."""


class Interrupted(TrituneError):
    """A person or a cluster asked the work to stop; the message says how to go on. Exit code 130."""
