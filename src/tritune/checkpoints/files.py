"""Files and folders that are replaced whole, with the modes that `open()` and `mkdir()` give.

That is what the umask leaves to a new one, and what an existing one had before. Writers that move a finished file into
its place lose both; safetensors 0.8 makes every file its owner's alone, and then no other user can load a model.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A file to write, which then takes the place of `path`: a reader sees the old one or the new one.

    On an error `path` stays as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    if path.exists():
        partial.touch(0o600)  # it may be that few may read `path`, and nobody else this one meanwhile
    try:
        yield partial
        take_place(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which then takes the place of `folder`; on an error `folder` stays as it was."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.{secrets.token_hex(4)}"
    partial.mkdir(0o700 if folder.exists() else 0o777)
    try:
        with usual_modes(partial):
            yield partial
        take_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def take_place(new: Path, old: Path) -> None:
    """Move a file or a folder to `old`; what lies there hands its mode on, in a folder file by file."""
    for path in (new, *new.rglob("*")):
        with suppress(FileNotFoundError, NotADirectoryError):
            shutil.copymode(old / path.relative_to(new), path)
    if old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    os.replace(new, old)


@contextmanager
def usual_modes(folder: str | os.PathLike) -> Iterator[None]:
    """Within the context safetensors files may be written into `folder`; at its end they have the modes of `open()`."""
    folder = Path(folder)
    before = _modes(folder)
    try:
        yield
    finally:
        after = _modes(folder)
        if after.keys() - before.keys():
            before = dict.fromkeys(after, _mode_of_a_new_file(folder)) | before
        for path, mode in after.items():
            if mode != before[path]:
                path.chmod(before[path])


def _modes(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mode & 0o7777 for path in folder.glob("*.safetensors")}


def _mode_of_a_new_file(folder: Path) -> int:
    """Asked of the file system: the umask cannot be read without being set, for all threads of the process."""
    probe = folder / f".{secrets.token_hex(8)}.probe"
    with probe.open("x") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o7777
    probe.unlink()
    return mode
