"""`tritune` in a process of its own that is stopped at one of its own events: no stop depends on a machine's speed.

An event is a change in a folder: a file opened for writing, a folder made, something renamed or removed, in the order
in which Python (`sys.addaudithook`) and `torch.save` report them. The same command makes the same changes every time.
"""

import fnmatch
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from processes import Job
from tritune.cli import main

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "torch.save"}


def start_tritune(*arguments: object, folder: Path, at: int | str = 0, how: int = 0) -> Job:
    """A command line in a process of its own; the last line of its output is the number of changes.

    Args:
        arguments: of tritune.
        folder: whose changes count.
        at: the number of a change, from 1, or a pattern of the first one that is waited for: the audit event and the
            path in `folder`, as "open */config.json".
        how: the signal that then comes, just before the change; 0 for none.
    """
    return Job(_tritune, Stop(folder, at, how), *map(str, arguments))


def run_tritune(*arguments: object, **stop: object) -> subprocess.CompletedProcess:
    """The same, waited for to its end or until it is stopped."""
    return start_tritune(*arguments, **stop).wait()


class Stop:
    """Counts the changes in a folder, and sends the signal when the awaited one is about to be made."""

    def __init__(self, folder: Path, at: int | str, how: int):
        self.folder, self.at, self.how, self.count = folder.resolve(), at, how, 0

    def __call__(self, event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax"
        if not (writes or event in CHANGES):
            return
        path = Path(os.fsdecode(arguments[0])).absolute()
        if not path.is_relative_to(self.folder):
            return
        self.count += 1
        change = f"{event} {path.relative_to(self.folder).as_posix()}"
        if self.how and (self.count == self.at if isinstance(self.at, int) else fnmatch.fnmatch(change, self.at)):
            how, self.how = self.how, 0
            if writes and how == signal.SIGKILL:
                with path.open("ab" if arguments[1][0] == "a" else "wb") as file:
                    file.write(b'{"half')  # what a kill in the middle of the writing leaves
            os.killpg(0, how)


def _tritune(stop: Stop, *arguments: str) -> None:
    save = torch.save

    def audited(value: object, file: object, *more: object, **options: object) -> None:
        if isinstance(file, str | Path):  # opened where Python does not see it
            sys.audit("torch.save", file)
        save(value, file, *more, **options)

    torch.save = audited
    sys.addaudithook(stop)
    sys.argv = ["tritune", *arguments]
    try:
        main.main()
    finally:
        print(stop.count, flush=True)
