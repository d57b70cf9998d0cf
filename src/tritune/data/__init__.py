"""Readers of task data: one file per source, all giving the same columns."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets import DatasetDict

from ..errors import TrituneError
from ..tasks import Task
from .glue import load_glue_folder, wanted_splits
from .hub import load_hub

__all__ = ["load_glue_folder", "load_hub", "load_task_data"]


def load_task_data(task: Task, folder: str | Path | None = None, splits: Sequence[str] | None = None) -> DatasetDict:
    """The task's data: the user's own files, or from a folder of the original ones when one is given, else the hub.

    Every split of a GLUE task has the columns `task.text_columns` and `label` (ClassLabel, or float32 for regression);
    other kinds have what their heads read. `splits` names the wanted ones out of "train" and `task.dev_splits`; None
    means all of them.

    Raises TrituneError as `load_glue_folder`, `load_hub` and the head's `read_files` do.
    """
    if task.files is not None:
        return task.head.read_files(task, wanted_splits(task, splits))
    if folder is None:
        return load_hub(task, splits)
    files = task.head.folder_files(task, Path(folder))
    if files is None:
        return load_glue_folder(task, folder, splits)
    if not Path(folder).is_dir():
        raise TrituneError(f"{folder} is not a folder: give the one that holds {task.title}'s files")
    return load_task_data(replace(task, files=files), splits=splits)
