"""The output folder of a run: used by one process at a time, files in it are replaced as a whole or not at all."""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..checkpoints.files import replace_file
from ..compute.devices import this_process
from ..errors import CannotWriteError, TrituneError
from ..recipes import RECIPE_FILE
from ..tasks.task_file import TASK_FILE

CHECKPOINTS = "checkpoints"
BEST = "best"
ANALYSIS = "analysis"
LOCK = ".lock"
METRICS = "metrics.json"
DEMO = "demo.json"
SHRUNK = "shrunk.json"
HISTORY = "history.jsonl"


def check_free(
    folder: Path,
    overwrite: bool,
    resume: bool = False,
    *,
    inputs: Iterable[str | Path] = (),
    mark: str = RECIPE_FILE,
) -> None:
    """Check that `folder` can be a run's output; nothing is written.

    Args:
        folder: the output folder; need not exist.
        overwrite: replace a run that lies there.
        resume: continue a run that lies there.
        inputs: paths that the run reads, which must not be in the folder.
        mark: a file that every resumable run has.

    Raises:
        TrituneError: it is a file, it is not empty, or it holds one of the inputs.
    """
    if folder.exists() and not folder.is_dir():
        raise TrituneError(f"{folder}: this is a file; --output takes a folder")
    for source in inputs:
        if Path(source).exists() and Path(source).resolve().is_relative_to(folder.resolve()):
            raise TrituneError(f"{folder}: the output folder is also an input, or holds {source}; choose another one")
    if overwrite and resume:
        raise TrituneError("--resume and --overwrite exclude each other")
    # A run killed at its very beginning leaves no more than a lock or a partial file.
    taken = folder.is_dir() and any(path.name != LOCK and not path.match(".*.partial") for path in folder.iterdir())
    if taken and resume and not (folder / mark).is_file():
        raise TrituneError(f"{folder}: holds other files but no run to resume; choose another folder")
    if taken and overwrite and not any((folder / name).is_file() for name in (RECIPE_FILE, METRICS, DEMO, SHRUNK)):
        raise TrituneError(f"{folder}: holds files but no run, so --overwrite does not touch it; choose another folder")
    if taken and not (overwrite or resume):
        raise TrituneError(
            f"{folder}: holds a run or other files already; give --resume to continue a run, --overwrite, or another "
            "folder"
        )


@contextmanager
def claimed(folder: Path, resume: bool = False) -> Iterator[None]:
    """Lock the folder for this run within the context; the lock of a killed run ends with its process.

    Unless the run is resumed, the files of an earlier run are removed first; other files stay. With several processes
    the main one locks and writes, the others wait for it.

    Raises:
        CannotWriteError: another run is writing there, or the folder is not writable.
    """
    process = this_process()
    if not process.is_main_process:
        process.wait_for_everyone()
        yield
        return
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise CannotWriteError(f"{folder}: another run is writing into this folder; choose another, or wait") from None
    except OSError as error:
        raise CannotWriteError(f"{folder}: cannot be written to ({error.strerror})") from None
    try:
        for partial in folder.glob(f".{BEST}.*"):  # left by a run that was killed while replacing its best student
            remove(partial)
        if not resume:
            for name in (CHECKPOINTS, BEST, ANALYSIS):
                remove(folder / name)
            for name in (METRICS, RECIPE_FILE, TASK_FILE, HISTORY, "config.json", "model.safetensors"):
                (folder / name).unlink(missing_ok=True)
        process.wait_for_everyone()
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()


def remove_students(output: Path) -> None:
    """Delete the students of a finished run, but not its measurements."""
    remove(output / BEST)
    for path in output.iterdir():
        if path.is_file() and path.name not in (METRICS, RECIPE_FILE, TASK_FILE, HISTORY, LOCK):
            path.unlink()


def remove(folder: Path) -> None:
    """Delete a folder if it exists."""
    shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file as `write_text` does."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that a run wrote; empty if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def metrics_beside(model: str | Path) -> Any:
    """The content of a model's `metrics.json`, finished or not; None for a model that no run wrote.

    Args:
        model: a run's folder, its `best/`, or any other model.
    """
    folder = Path(model)
    places = [folder / METRICS]
    if folder.name == BEST:
        places += [folder.parent / METRICS, folder.parent / CHECKPOINTS / METRICS]
    with suppress(OSError, ValueError):  # a foreign file may hold anything
        return next((read_json(place) for place in places if place.is_file()), None)
    return None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: a reader sees the old one or the new one. Only the main process writes."""
    if not this_process().is_main_process:
        return
    with replace_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
