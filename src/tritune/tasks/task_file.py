"""A user's own task as a YAML file: which files, which columns, which labels in which order.

`finetune` and `train` write one into their output folder, so that later commands use the same task and data. It holds
paths of this machine and is never uploaded.
"""

import difflib
import filecmp
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..errors import TrituneError, shown

if TYPE_CHECKING:
    from .heads import Task

TASK_FILE = "task.yaml"
_SPLITS = {"train_file": "train", "dev_file": "validation"}
_TEXTS = ("kind", *_SPLITS, "label_column", "problem", "metric")
_LISTS = ("columns", "labels")


def read_task_file(path: str | Path) -> dict[str, Any]:
    """The arguments of `registry.own_task` that a task file holds; its relative paths start at its own folder.

    Raises TrituneError if the file is missing or not YAML, or a key is unknown, missing, or of another type.
    """
    values = _read_mapping(Path(path))
    for key in values:
        if key not in (*_TEXTS, *_LISTS):
            close = difflib.get_close_matches(str(key), (*_TEXTS, *_LISTS), n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise TrituneError(f"{path}: unknown key {shown(key)}; {hint}known are {', '.join((*_TEXTS, *_LISTS))}")
    values = {key: value for key, value in values.items() if value is not None}
    for key in _TEXTS:
        if not isinstance(values.get(key, ""), str):
            raise TrituneError(f"{path}: {key} must be text, got {shown(values[key])}")
    for key in _LISTS:
        if key in values:
            values[key] = _names(values[key], f"{path}: {key}")
    if "kind" not in values:
        raise TrituneError(f"{path}: the key kind is missing; it says what the task is, such as text-classification")
    from .heads import HEADS

    folder = Path(path).absolute().parent
    on_hub = getattr(HEADS.get(values["kind"]), "reads_hub", False)
    files = {split: _located(values.pop(key), folder, on_hub) for key, split in _SPLITS.items() if key in values}
    return values | {"files": files}


def task_to_yaml(task: "Task") -> str:
    """A user's own task as the text of a task file; `read_task_file` gives the same task back."""
    files = task.files or {}
    values = {"kind": task.head.name} | {key: str(files[split]) for key, split in _SPLITS.items() if split in files}
    values |= _description(task) | {"metric": task.metric}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def task_record(task: "Task") -> dict[str, Any]:
    """What identifies a user's own task in a run's record: metric, columns, labels, hashes of the files.

    Where dev rows are held out of the training file, also their seed. No paths, because a record may be published.
    Empty for a task of the table, whose name says all.
    """
    if task.files is None:
        return {}
    from .heads.head import HELD_OUT_SEED

    hashes = {split: content_sha256(path) for split, path in task.files.items()}
    dev = {"dev": {"held_out_of": "train", "seed": HELD_OUT_SEED}} if task.holds_out else {}
    return {"data": _description(task) | {"sha256": hashes} | dev, "metric": task.metric}


def _description(task: "Task") -> dict[str, Any]:
    values: dict[str, Any] = {}
    if task.head.has_columns:
        values = {"columns": list(task.text_columns)} if task.text_columns else {}
        values["label_column"] = task.label_column
    if "problem" in task.head.file_options:
        values["problem"] = task.problem
    if task.labels is not None:
        values["labels"] = list(task.labels)
    return values


def check_files(files: Mapping[str, str | Path], reads_hub: bool = False) -> dict[str, Path]:
    """The files of a task's splits as absolute paths; names on the hub, where these may be given, as they are.

    Raises TrituneError if there is none, one does not exist, or the dev file is the train file.
    """
    if not files:
        raise TrituneError("no file is given: name them with --train-file and --dev-file")
    found = {split: _located(path, Path(), reads_hub) for split, path in files.items()}
    for path in found.values():
        if not path.exists() and not _on_hub(path):
            raise TrituneError(f"{path}: there is no such file or folder")
    train, dev = found.get("train"), found.get("validation")
    if train and dev and _are_same(train, dev):
        raise TrituneError(f"{dev}: the dev file is the train file ({train}); a score on it would say nothing")
    return found


def _are_same(train: Path, dev: Path) -> bool:
    if not (train.exists() and dev.exists()):
        return False  # names on the hub
    return train.samefile(dev) or (dev.is_file() and filecmp.cmp(train, dev, shallow=False))


def _located(value: str | Path, folder: Path, reads_hub: bool) -> Path:
    """An absolute path, relative ones from `folder` on; what is not there may be a hub's name and stays one."""
    path = (folder / Path(value).expanduser()).absolute()
    return path if not reads_hub or path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(value)) else Path(value)


def _on_hub(path: Path) -> bool:
    return not path.is_absolute()


def content_sha256(path: Path) -> str:
    """A hash of a file's bytes, or of the names and sizes of all files in a folder; nothing for a name on the hub.

    Raises TrituneError if the file cannot be read.
    """
    if path.is_file():
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise TrituneError(f"{path}: cannot be read ({error.strerror})") from None
    if _on_hub(path):
        return ""
    names = sorted(each for each in path.rglob("*") if each.is_file())
    text = "\n".join(f"{each.relative_to(path).as_posix()} {each.stat().st_size}" for each in names)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _read_mapping(path: Path) -> dict[Any, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TrituneError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # of a date or a number that it cannot hold, PyYAML says so in types of its own
        mark = getattr(error, "problem_mark", None)
        raise TrituneError(f"{path}{f', line {mark.line + 1}' if mark else ''}: not YAML") from None
    if not isinstance(values, dict):
        raise TrituneError(f"{path}: a task file is a list of `key: value` lines")
    return values


def _names(value: Any, what: str) -> list[str]:
    """A list of names; whole numbers among them, which YAML reads from a plain 0, are their digits."""
    names = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(type(name) in (str, int) for name in names):
        raise TrituneError(f"{what} must be a list of names, got {shown(value)}")
    if len({*map(str, names)}) < len(names):
        raise TrituneError(f"{what} lists a name twice: {shown(value)}")
    return [str(name) for name in names]
