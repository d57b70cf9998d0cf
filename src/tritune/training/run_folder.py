"""The output folder of a run: claimed only when free, files in it replaced whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import TrituneError
from ..recipes import RECIPE_FILE

CHECKPOINTS = "checkpoints"
BEST = "best"
METRICS = "metrics.json"
HISTORY = "history.jsonl"


def check_free(folder: Path, overwrite: bool, *, inputs: tuple[str, ...] = ()) -> None:
    """Check that `folder` may become a run's output; nothing is written.

    Args:
        folder: wanted as output; may not exist yet.
        overwrite: whether a run that lies there may be replaced.
        inputs: what the run reads, which must not lie in the same folder.

    Raises:
        TrituneError: it is a file, it holds something already, or it is one of the inputs.
    """
    if folder.exists() and not folder.is_dir():
        raise TrituneError(f"{folder}: this is a file; --output takes a folder")
    for source in inputs:
        if Path(source).exists() and folder.exists() and os.path.samefile(source, folder):
            raise TrituneError(f"{folder}: the output folder is also the input; choose another one")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise TrituneError(f"{folder}: holds a run or other files already; choose another folder or give --overwrite")


def claim(folder: Path) -> None:
    """Make the folder, and remove what an earlier run left in it; files that no run writes stay.

    Raises:
        TrituneError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (CHECKPOINTS, BEST):
            remove(folder / name)
        for name in (METRICS, RECIPE_FILE, HISTORY, "config.json", "model.safetensors"):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise TrituneError(f"{folder}: cannot be written to ({error.strerror})") from None


def remove(folder: Path) -> None:
    """Delete a folder if it is there."""
    shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file whole."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole: a reader sees the old one or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which then takes the place of `folder`; on an error `folder` stays as it was."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    partial.chmod(0o755)
    try:
        yield partial
        remove(folder)
        os.replace(partial, folder)
    finally:
        remove(partial)
