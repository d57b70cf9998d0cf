"""The forms in which data comes, all read into rows: what the rows are for is not asked here."""

from pathlib import Path

from .reading import Reading, read_messy


def read_data(source: str | Path, task: str | None = None) -> Reading:
    """Read a file by its form.

    Args:
        source: a file.
        task: the kind of task that it is for, which tells apart what looks alike; None if nobody said.

    Raises:
        TrituneError: it cannot be read.
    """
    return read_messy(Path(source))
