"""A training file with variants of its rows, written so that a stop at any moment costs next to nothing.

Each row is followed by its variants, in the layout of the original file, so that the same reader reads both. What is
random about a row follows from the seed and the row's number alone. The rows go into a partial file; beside it lies a
record of the settings and of how many rows and bytes are good, renewed every few rows. A run that goes on cuts
the partial file to these bytes and continues with the next row, so that its file is, byte for byte, that of a run which
was never stopped. Only the finished file gets the name that a training reads.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from ...checkpoints.files import replace_file, take_place
from ...errors import Interrupted, TrituneError
from ...progress import tracked
from ..heads import TEXT_CLASSIFICATION
from ..registry import Task
from ..table import check_writable
from ..task_file import content_sha256
from .augment import Augmenter
from .glue import AUGMENTED_FILE, GlueFile, read_glue_fields

TRAIN_FILE = "train.tsv"
# Rows that a stop may cost.
_ROWS_BETWEEN_RECORDS = 50


@dataclass(frozen=True)
class AugmentedFile:
    """An augmented training file at `path`, of a task's original file `source`, and what lies beside it meanwhile."""

    path: Path
    task: Task
    source: Path

    @property
    def record(self) -> Path:
        """The settings it was made with, and how far it has come."""
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def partial(self) -> Path:
        """What is written before all is."""
        return self.path.with_name(f".{self.path.name}.partial")

    def read_record(self) -> dict[str, Any] | None:
        """What `record` holds, None if there is none; TrituneError if it is not a record."""
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
            if record["settings"].keys() and isinstance(record["rows"] + record["bytes"] + record["variants"], int):
                return record
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        raise TrituneError(f"{self.record}: not the record of an augmentation; remove it, or choose another --output")


def open_output(
    task: Task, data_folder: str | Path, output: Path | None, *, overwrite: bool = False, resume: bool = False
) -> AugmentedFile:
    """The file to write, checked before anything is computed; nothing is written.

    Args:
        task: of the table.
        data_folder: the folder with the task's `train.tsv`; no other file of it is read.
        output: None is `train_aug.tsv` in that folder, where a training looks for it.
        overwrite: whether an augmented file that lies there may be replaced.
        resume: whether one that was begun there is to go on.

    Raises:
        TrituneError: the task has no tsv files; the folder is a file, such as the dev file; the output is no file of an
            augmentation, is there already, or cannot be written.
    """
    if task.head is not TEXT_CLASSIFICATION or task.files is not None:
        raise TrituneError(f"{task.title}: only GLUE tasks, which are read from tsv files, can be augmented")
    folder = Path(data_folder)
    if folder.is_file():
        raise TrituneError(f"{folder}: --data takes the folder; only its {TRAIN_FILE} is augmented, never a dev file")
    if not (folder / TRAIN_FILE).is_file():
        raise TrituneError(f"{folder / TRAIN_FILE} is missing: --data takes the folder of {task.title}'s tsv files")
    if overwrite and resume:
        raise TrituneError("--resume and --overwrite exclude each other")
    file = AugmentedFile(output or folder / AUGMENTED_FILE, task, folder / TRAIN_FILE)
    path = file.path
    if path.suffix != ".tsv" or path.stem.partition("_")[0] in ("dev", "test") or path.name == TRAIN_FILE:
        raise TrituneError(f"{path}: an augmented file is a .tsv file with a name of its own, such as {AUGMENTED_FILE}")
    check_writable(path)
    record = file.read_record()
    if record is None and path.exists():
        raise TrituneError(f"{path}: not a file that `tritune augment` wrote, so it is left alone; choose another one")
    if record is not None and not (overwrite or resume):
        raise TrituneError(f"{path}: already exists, or was begun; give --resume to continue, or --overwrite")
    return file


def write_augmented(
    file: AugmentedFile, augmenter: Augmenter, count: int, seed: int, settings: dict[str, Any], *, resume: bool = False
) -> dict[str, Any]:
    """Write every row of the original file, each followed by its variants.

    A row of two texts has variants in which the first is changed and the second stays, then the other way round: as
    published, where the first text stayed in its last variant by an oversight.

    Args:
        file: from `open_output`.
        augmenter: makes the variants.
        count: draws per text.
        seed: with the row's number it says everything that is random about a row.
        settings: whatever else the bytes depend on; a run that goes on must have the same.
        resume: go on with what was begun there.

    Returns:
        The record: settings, rows, variants, bytes.

    Raises:
        Interrupted: Ctrl-C; the file can be resumed.
        TrituneError: the original file is at fault, the output cannot be written, is being written by another process,
            or was begun with other settings.
    """
    glue = read_glue_fields(file.task, file.source)
    own = {"task": file.task.name, "train_sha256": content_sha256(file.source), "n": count, "seed": seed}
    record: dict[str, Any] = {"settings": own | settings, "total": len(glue.rows), "rows": 0, "variants": 0, "bytes": 0}
    with _claimed(file):
        if resume and (begun := file.read_record()):
            _check_same(file, begun["settings"], record["settings"])
            if begun["rows"] == len(glue.rows) and not file.partial.exists() and file.path.exists():
                return begun
            if file.partial.is_file() and file.partial.stat().st_size >= begun["bytes"]:
                record = begun
        with file.partial.open("r+b" if record["bytes"] else "wb") as partial:
            partial.truncate(record["bytes"])
            partial.seek(record["bytes"])
            _write_rows(file, partial, glue, augmenter, record)
        take_place(file.partial, file.path)
    return record


def _write_rows(
    file: AugmentedFile, partial: BinaryIO, glue: GlueFile, augmenter: Augmenter, record: dict[str, Any]
) -> None:
    """The rows that are not there yet; `record` counts them."""
    if not record["bytes"] and glue.header:
        partial.write(_line(glue.header))
    _save(file, partial, record)
    settings = record["settings"]
    before = record["rows"]
    rows = tracked(glue.rows[before:], "augment", len(glue.rows), "rows", before=before, delay=0)
    for row, fields in enumerate(rows, before):
        variants = list(_variants(augmenter, fields, glue.text_places, settings["n"], (settings["seed"], row)))
        partial.write(b"".join(map(_line, [fields, *variants])))
        record["rows"], record["variants"] = row + 1, record["variants"] + len(variants)
        if record["rows"] % _ROWS_BETWEEN_RECORDS == 0:
            _save(file, partial, record)
    _save(file, partial, record)


def _variants(
    augmenter: Augmenter, fields: list[str], places: list[int], count: int, key: tuple[int, int]
) -> Iterator[list[str]]:
    """The rows with one of their texts changed; `key` is the seed and the row's number."""
    for text, place in enumerate(places):
        for variant in augmenter.variants(fields[place], count, np.random.default_rng((*key, text))):
            yield [*fields[:place], variant, *fields[place + 1 :]]


def _line(fields: list[str]) -> bytes:
    return ("\t".join(fields) + "\n").encode()


def _save(file: AugmentedFile, partial: BinaryIO, record: dict[str, Any]) -> None:
    """What was written so far is on the disk before the record says so."""
    partial.flush()
    os.fsync(partial.fileno())
    record["bytes"] = partial.tell()
    with replace_file(file.record) as renewed:
        renewed.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _check_same(file: AugmentedFile, begun: dict[str, Any], wanted: dict[str, Any]) -> None:
    if differs := [name for name in {**begun, **wanted} if begun.get(name) != wanted.get(name)]:
        raise TrituneError(
            f"{file.path}: --resume: was begun with a different {', '.join(differs)}; use the same, or --overwrite"
        )


@contextmanager
def _claimed(file: AugmentedFile) -> Iterator[None]:
    """Within the context no other process writes there; what goes wrong in it is said in one line."""
    lock = FileLock(file.path.with_name(f".{file.path.name}.lock"))
    try:
        lock.acquire(timeout=0)
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
    except Timeout:
        raise TrituneError(f"{file.path}: another process is writing it; wait, or choose another --output") from None
    except OSError as error:
        raise TrituneError(f"{file.path}: cannot be written ({error.strerror}); --resume goes on from there") from None
    except KeyboardInterrupt:
        raise Interrupted(f"{file.path}: stopped; --resume goes on from there") from None
