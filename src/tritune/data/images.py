"""Reads an image task of the table from a folder with a parquet file per split, or from the hub."""

from collections.abc import Sequence
from pathlib import Path

from datasets import ClassLabel, DatasetDict

from ..errors import TrituneError
from ..heads.images import LABEL, labelled, read_labelled
from ..tasks import Task
from .glue import wanted_splits

REPOSITORIES = {"cifar10": "uoft-cs/cifar10"}


def load_images(task: Task, folder: str | Path | None = None, splits: Sequence[str] | None = None) -> DatasetDict:
    """The task's splits with the columns `image` and `label`, every image decodable.

    Args:
        task: of the table.
        folder: with `train.parquet` and one file for each dev split; None reads the hub.
        splits: the wanted ones out of "train" and `task.dev_splits`; None means all of them.

    Raises:
        TrituneError: a file is missing, an image cannot be decoded, or the labels are not the task's.
    """
    read = {}
    for split in wanted_splits(task, splits):
        source = REPOSITORIES[task.name] if folder is None else Path(folder) / f"{split}.parquet"
        if folder is not None and not source.is_file():
            raise TrituneError(f"{source}: there is no such file; {task.title} is read from a parquet file per split")
        rows = read_labelled(source, split, None, task.label_column)
        names = rows.features[LABEL].names if isinstance(rows.features[LABEL], ClassLabel) else None
        # Class names in another order would train and score without complaint, and be wrong.
        if names is not None and sorted(names) != sorted(task.labels):
            raise TrituneError(f"{source}: its labels are {names}, those of {task.title} {list(task.labels)}")
        read[split] = labelled(rows, task.labels, str(source))
    return DatasetDict(read)
