"""Kinds of data: one file and one row of the table for each."""

from ...errors import TrituneError
from ..reading import Reading
from ..table import Table
from .images import Images
from .questions import Questions
from .sentences import Sentences
from .tags import Tags
from .texts import Texts

__all__ = ["KINDS", "kind_of"]

# The first that fits is taken: any table may be one of texts and labels.
_KINDS: tuple[type[Table], ...] = (Images, Questions, Tags, Sentences, Texts)
KINDS: dict[str, type[Table]] = {kind.task_kind: kind for kind in _KINDS}


def kind_of(reading: Reading, task: str | None = None) -> type[Table]:
    """The kind of data that was read: the one named by its task, or the first that fits.

    Raises:
        TrituneError: the file cannot hold data for this task.
    """
    if task is None:
        return next(kind for kind in _KINDS if kind.fits(reading))
    if not KINDS[task].may_be(reading):
        fits = kind_of(reading).task_kind
        raise TrituneError(f"{reading.file}: holds no data for {task}; it looks like data for {fits}")
    return KINDS[task]
