"""Readers of task data: one file per source, all giving the same columns."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets import DatasetDict

from ...errors import TrituneError
from ..heads import TEXT_CLASSIFICATION
from ..registry import Task
from .glue import load_glue_folder, wanted_splits
from .held_out import divided
from .hub import load_hub

__all__ = ["load_glue_folder", "load_hub", "load_task_data"]


def load_task_data(
    task: Task, folder: str | Path | None = None, splits: Sequence[str] | None = None, augmented: bool = False
) -> DatasetDict:
    """The task's data: its own files, or from a folder of the original ones when one is given, else the hub.

    Where a training file is all there is and dev rows are asked for, these are some of its rows, see
    `held_out.divided`.

    Every split of a text classification has the columns `task.text_columns` and `label` (ClassLabel, float32 for
    regression, or a float32 for each of many labels); other kinds have what their heads read. `splits` names the
    wanted ones out of "train" and `task.dev_splits`; None means all of them. With `augmented` the training rows are
    those of the folder's `train_aug.tsv`.

    Raises TrituneError as `load_glue_folder`, `load_hub` and the head's `read_files` do, and for augmented rows
    without a folder.
    """
    if augmented and (folder is None or task.files is not None):
        raise TrituneError("augmented: true needs a folder with train_aug.tsv; give it with --data FOLDER")
    if task.files is not None:
        if folder is not None:
            raise TrituneError(f"--data {folder}: {task.title} has its own files; omit --data")
        wanted = wanted_splits(task, splits)
        if task.holds_out and [*wanted] != ["train"]:
            return divided(task, wanted)
        for split in wanted:
            task.file(split)
        return task.head.read_files(task, wanted)
    if augmented and task.head is not TEXT_CLASSIFICATION:
        raise TrituneError(f"augmented: true is for GLUE's text tasks; {task.title} is not one of them")
    if folder is None:
        return load_hub(task, splits)
    files = task.head.folder_files(task, Path(folder))
    if files is None:
        return load_glue_folder(task, folder, splits, augmented)
    if not Path(folder).is_dir():
        raise TrituneError(f"{folder} is not a folder: give the one that holds {task.title}'s files")
    return load_task_data(replace(task, files=files), splits=splits)
