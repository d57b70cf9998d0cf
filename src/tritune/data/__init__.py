"""Readers of task data: one file per source, all giving the same columns."""

from collections.abc import Sequence
from pathlib import Path

from datasets import DatasetDict

from ..tasks import Task
from .glue import load_glue_folder, wanted_splits
from .hub import load_hub
from .images import REPOSITORIES, load_images

__all__ = ["load_glue_folder", "load_hub", "load_images", "load_task_data"]


def load_task_data(task: Task, folder: str | Path | None = None, splits: Sequence[str] | None = None) -> DatasetDict:
    """The task's data: the user's own files, or from a folder of original files when one is given, else the hub.

    Every split has the columns `task.text_columns` and `label` (ClassLabel, or float32 for regression). `splits` names
    the wanted ones out of "train" and `task.dev_splits`; None means all of them.

    Raises TrituneError as `load_glue_folder`, `load_hub` and the head's `read_files` do.
    """
    if task.files is not None:
        return task.head.read_files(task, wanted_splits(task, splits))
    if task.name in REPOSITORIES:
        return load_images(task, folder, splits)
    return load_hub(task, splits) if folder is None else load_glue_folder(task, folder, splits)
