"""The output folder of a run: claimed only when free, files in it replaced whole or not at all."""

import json
import shutil
from collections.abc import Iterator
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
_PARTIAL = ".partial"


def check_free(
    folder: Path, overwrite: bool, resume: bool = False, *, inputs: tuple[str, ...] = (), mark: str = RECIPE_FILE
) -> None:
    """Check that `folder` may become a run's output; nothing is written.

    Args:
        folder: wanted as output; may not exist yet.
        overwrite: whether a run that lies there may be replaced.
        resume: whether a run that lies there is to go on.
        inputs: what the run reads, which must not lie in the folder.
        mark: the file that a run which can go on has.

    Raises:
        TrituneError: it is a file, it holds something already, or it is one of the inputs.
    """
    if folder.exists() and not folder.is_dir():
        raise TrituneError(f"{folder}: this is a file; --output takes a folder")
    for source in inputs:
        if Path(source).exists() and Path(source).resolve().is_relative_to(folder.resolve()):
            raise TrituneError(f"{folder}: the output folder is also an input, or holds {source}; choose another one")
    if overwrite and resume:
        raise TrituneError("--resume and --overwrite exclude each other")
    taken = folder.is_dir() and any(not _is_passing(path.name) for path in folder.iterdir())
    if taken and resume and not (folder / mark).is_file():
        raise TrituneError(f"{folder}: holds other files but no run to resume; choose another folder")
    if taken and overwrite and not any((folder / name).is_file() for name in (RECIPE_FILE, METRICS, DEMO, SHRUNK)):
        raise TrituneError(f"{folder}: holds files but no run, so --overwrite leaves it alone; choose another folder")
    if taken and not (overwrite or resume):
        raise TrituneError(
            f"{folder}: holds a run or other files already; give --resume to go on with a run, --overwrite, or another "
            "folder"
        )


def _is_passing(name: str) -> bool:
    """Whether a file is no more than what a run that was killed at its very beginning leaves."""
    return name == LOCK or (name.startswith(".") and name.endswith(_PARTIAL))


@contextmanager
def claimed(folder: Path, resume: bool = False) -> Iterator[None]:
    """Within the context the folder is this run's alone; a killed run's claim ends with its process.

    Unless the run resumes, what an earlier run left is removed first; files that no run writes stay. Of many processes
    the first one claims and writes, the others wait for it.

    Raises:
        CannotWriteError: another run is writing there, or the folder cannot be written to.
    """
    process = this_process()
    if not process.is_main_process:
        process.wait_for_everyone()
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise CannotWriteError(
            f"{folder}: another run is writing into this folder; choose another one, or wait"
        ) from None
    except OSError as error:
        raise CannotWriteError(f"{folder}: cannot be written to ({error.strerror})") from None
    try:
        for partial in folder.glob(f".{BEST}.*"):  # a run that was killed while it replaced its best student
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
    """Delete the students of a finished run and leave what was measured, as a sweep of many runs wants it."""
    remove(output / BEST)
    for path in output.iterdir():
        if path.is_file() and path.name not in (METRICS, RECIPE_FILE, TASK_FILE, HISTORY, LOCK):
            path.unlink()


def remove(folder: Path) -> None:
    """Delete a folder if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file whole."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that a run wrote; empty if it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def metrics_beside(model: str | Path) -> Any:
    """What a file says that lies where a run keeps what is known of a model; None for a model that no run left there.

    Args:
        model: a run's folder, its `best/`, or any other model.
    """
    folder = Path(model)
    places = [folder / METRICS]
    if folder.name == BEST:
        places += [folder.parent / METRICS, folder.parent / CHECKPOINTS / METRICS]
    with suppress(OSError, ValueError):  # of a file that is none of ours nothing is asked
        return next((read_json(place) for place in places if place.is_file()), None)
    return None


def write_text(path: Path, text: str) -> None:
    """Write a text file whole: a reader sees the old one or the new one. Of many processes the first one writes."""
    if not this_process().is_main_process:
        return
    with replace_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
