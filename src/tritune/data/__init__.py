"""Readers of task data: one file per source, all giving the same columns."""

from collections.abc import Sequence
from pathlib import Path

from datasets import DatasetDict

from ..errors import TrituneError
from ..tasks import Task
from .glue import load_glue_folder
from .hub import load_hub

__all__ = ["load_glue_folder", "load_hub", "load_task_data"]


def load_task_data(
    task: Task, folder: str | Path | None = None, splits: Sequence[str] | None = None, augmented: bool = False
) -> DatasetDict:
    """The task's data: from a folder of original tsv files when one is given, else from the hub.

    Every split has the columns `task.text_columns` and `label` (ClassLabel, or float32 for regression). `splits` names
    the wanted ones out of "train" and `task.dev_splits`; None means all of them. With `augmented` the training rows
    are those of the folder's `train_aug.tsv`.

    Raises TrituneError as `load_glue_folder` and `load_hub` do, and for augmented rows without a folder.
    """
    if folder is not None:
        return load_glue_folder(task, folder, splits, augmented)
    if augmented:
        raise TrituneError("augmented: true needs a folder with train_aug.tsv; give it with --data FOLDER")
    return load_hub(task, splits)
