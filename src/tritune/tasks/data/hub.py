"""Reads a task from the hub data set `nyu-mll/glue`, with the columns the folder reader gives."""

from collections.abc import Sequence

from datasets import DatasetDict

from ...checkpoints.hub import load_dataset
from ...errors import TrituneError, first_line
from ..registry import Task
from .glue import features, wanted_splits

REPOSITORY = "nyu-mll/glue"
# Tasks that read another task's rows.
_SUBSETS = {"features": "stsb"}


def load_hub(task: Task, splits: Sequence[str] | None = None) -> DatasetDict:
    """The task's splits from the hub, or from its local cache.

    `splits` names the wanted ones out of "train" and `task.dev_splits` (None: all); the hub's test splits carry no
    labels and are left out.

    Raises TrituneError for an unknown split, a task that is not on the hub, a hub that cannot be reached, and columns
    or label names other than the task's.
    """
    wanted = wanted_splits(task, splits)
    if task.name == "demo":
        raise TrituneError(f"{task.title} is not on the hub: give its tsv files with --data FOLDER")
    try:
        subset = _SUBSETS.get(task.name, task.name)
        loaded = load_dataset(task.repository) if task.repository else load_dataset(REPOSITORY, subset)
    except Exception as error:  # the network, the cache and the hub's client each fail with types of their own
        raise TrituneError(
            f"cannot load {task.title} from the hub ({first_line(error)}): give its original files with --data FOLDER"
        ) from error
    if task.repository:
        if missing := [split for split in wanted if split not in loaded]:
            raise TrituneError(f"{task.repository} has no split {missing[0]!r}; there are {', '.join(loaded)}")
        return DatasetDict({split: task.head.from_hub(loaded[split], task, task.repository) for split in wanted})
    expected = features(task)
    for split in wanted:
        found = loaded[split].features if split in loaded else {}
        # Class names in another order would train and score without complaint, and be wrong.
        if any(found.get(column) != kind for column, kind in expected.items()):
            raise TrituneError(f"{REPOSITORY} gives {task.title} ({split}) as {dict(found)}, expected {dict(expected)}")
    return DatasetDict({split: loaded[split].select_columns(list(expected)) for split in wanted})
