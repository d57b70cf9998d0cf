"""Kinds of data: one file and one row of the table for each."""

from ..reading import Reading
from .table import Table
from .texts import Texts

__all__ = ["KINDS", "Table", "kind_of"]

# The first that fits is taken; any table may be one of texts and labels.
_KINDS: tuple[type[Table], ...] = (Texts,)
KINDS: dict[str, type[Table]] = {kind.task_kind: kind for kind in _KINDS}


def kind_of(reading: Reading, task: str | None = None) -> type[Table]:
    """The kind of data that was read: the one named by its task, or the first that fits."""
    if task is not None:
        return KINDS[task]
    return next(kind for kind in _KINDS if kind.fits(reading))
