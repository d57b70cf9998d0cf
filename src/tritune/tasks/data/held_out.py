"""Dev rows where there is a training file alone: some of its rows, which are then not trained on.

Which rows these are follows from the file and a seed that no recipe changes. So a student is scored on rows that its
teacher, fine-tuned on the same file, has not seen either.
"""

from collections.abc import Sequence

from datasets import DatasetDict

from ...errors import TrituneError
from ..heads.head import HELD_OUT_SEED, Task
from .splitting import DEV, SHARES, TRAIN, Example, split


def divided(task: Task, splits: Sequence[str]) -> DatasetDict:
    """These splits of a task whose only file is that of "train"; a tenth of its rows are those of "validation".

    Rows with the same inputs are on one side, but for case, punctuation and spaces; classes keep their shares.

    Raises:
        TrituneError: the file cannot be used, or has too few different rows.
    """
    rows = task.head.read_undivided(task)
    texts, labels = task.head.kinship(rows, task)
    examples = [Example(*row, {}) for row in zip(range(len(rows)), texts, labels, strict=True)]
    try:
        parts = split(examples, HELD_OUT_SEED, shares={DEV: SHARES[DEV]}).rows
    except TrituneError as error:
        raise TrituneError(f"{task.file('train')}: {error}; or give --dev-file") from None
    named = {"train": parts[TRAIN], task.dev_splits[0]: parts[DEV]}
    return DatasetDict({name: rows.select(sorted(row.line for row in named[name])) for name in splits})
