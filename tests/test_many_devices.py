"""Two processes, accumulated batches and gradient checkpointing give what one plain process gives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ddp_job

MODES = ("none", "map", "context", "projection", "stochastic")
JOB = str(Path(ddp_job.__file__))


def _run(folder: Path, schedule: str, processes: int, *flags: str) -> list[dict]:
    """The saved state of every rank."""
    folder.mkdir()
    arguments = [JOB, str(folder), schedule, str(processes), *flags]
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    )
    result = subprocess.run(
        [sys.executable, *launcher, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(processes)]


def _here(folder: Path, schedule: str, *flags: str) -> dict:
    """One process: this one."""
    folder.mkdir()
    try:
        ddp_job.main(str(folder), schedule, 1, *flags)
    finally:
        torch.set_default_dtype(torch.float32)
    return torch.load(folder / "rank0.pt")


@pytest.mark.parametrize("schedule", MODES)
def test_two_processes_equal_one(tmp_path, schedule):
    one = _here(tmp_path / "one", schedule)
    first, second = _run(tmp_path / "two", schedule, 2)
    for name in one:
        assert torch.equal(first[name], second[name]) or name == "losses", name
        torch.testing.assert_close(first[name], one[name], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("flag", ["accumulate", "checkpoint"])
@pytest.mark.parametrize("schedule", MODES)
def test_accumulation_and_checkpointing_equal_the_plain_run(tmp_path, schedule, flag):
    plain = _here(tmp_path / "plain", schedule)
    other = _here(tmp_path / flag, schedule, flag)
    for name in plain:
        torch.testing.assert_close(other[name], plain[name], rtol=1e-6, atol=1e-6, msg=name)
