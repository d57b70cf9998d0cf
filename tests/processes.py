"""Processes that begin with torch and transformers imported: forked from a server that imported them once.

A process of its own costs seconds for its imports alone. What tests the start itself uses `subprocess`.
"""

import gc
import multiprocessing
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tritune.cli.train", "tritune.cli.sweep", "tritune.training.trainer", "optuna"])


class Job:
    """A function in a process and a session of its own, with a `pid` and what a finished one returned and said."""

    def __init__(self, function: Callable, *arguments: object, **environment: str):
        self.folder = Path(tempfile.mkdtemp())
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.process = FORKS.Process(target=_alone, args=(self.folder, environment, function, arguments))
        self.process.start()
        self.pid = self.process.pid

    def wait(self) -> subprocess.CompletedProcess:
        self.process.join()
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        shutil.rmtree(self.folder)
        return subprocess.CompletedProcess(self.process.name, self.process.exitcode, out, err)


def _alone(folder: Path, environment: dict[str, str], function: Callable, arguments: tuple) -> None:
    os.setsid()  # a signal must reach the job as a terminal's would, and nobody else
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    gc.freeze()
    function(*arguments)


def two_ranks(function: Callable, *arguments: object) -> list[subprocess.CompletedProcess]:
    """The two processes of one distributed job, as `torchrun` would start them; both have succeeded."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    jobs = [Job(function, *arguments, **place, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)]
    results = [job.wait() for job in jobs]
    for result in results:
        assert result.returncode == 0, result.stderr[-3000:]
    return results
