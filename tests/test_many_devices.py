"""Two processes, accumulated batches and gradient checkpointing give what one plain process gives."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ddp_job
from processes import two_ranks
from tritune import DistillationTrainer, TrituneError
from tritune.cli import main
from tritune.compute.devices import this_process
from tritune.recipes import load_recipe
from tritune.tasks.heads import TEXT_CLASSIFICATION
from tritune.training import precision
from workspace import make_workspace, train_arguments

MODES = ("none", "map", "context", "projection", "block", "stochastic", "learned", "features", "balanced")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Callable[[str], dict[str, torch.Tensor]]:
    """What one plain process gives, by mode; made once each."""
    return functools.cache(lambda mode: _here(tmp_path_factory.mktemp("plain") / mode, mode))


def _here(folder: Path, schedule: str, *flags: str) -> dict[str, torch.Tensor]:
    """Losses and weights of one process: this one."""
    folder.mkdir()
    try:
        ddp_job.main(str(folder), schedule, 1, *flags)
    finally:
        torch.set_default_dtype(torch.float32)
    return torch.load(folder / f"{schedule}-rank0.pt")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder in which two processes saved every mode."""
    folder = tmp_path_factory.mktemp("two")
    two_ranks(_every_mode, str(folder))
    return folder


def _every_mode(folder: str) -> None:
    for mode in MODES:
        ddp_job.main(folder, mode, 2)


@pytest.mark.parametrize("schedule", MODES)
def test_two_processes_equal_one(plain, two_processes, schedule):
    one = plain(schedule)
    ranks = [torch.load(two_processes / f"{schedule}-rank{rank}.pt") for rank in range(2)]
    for name in one:
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], one[name], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("schedule", MODES)
def test_the_parts_of_the_loss_add_up_on_two_processes(two_processes, schedule):
    for rank in range(2):
        logged = torch.load(two_processes / f"{schedule}-rank{rank}.pt")
        assert logged["parts"].shape == (ddp_job.STEPS, 5)
        torch.testing.assert_close(logged["parts"] @ logged["coefficients"], logged["losses"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("flag", ["accumulate", "checkpoint"])
@pytest.mark.parametrize("schedule", MODES)
def test_accumulation_and_checkpointing_equal_the_plain_run(tmp_path, plain, schedule, flag):
    other = _here(tmp_path / flag, schedule, flag)
    for name, expected in plain(schedule).items():
        torch.testing.assert_close(other[name], expected, rtol=1e-6, atol=1e-6, msg=name)


def _torchrun(*arguments: str) -> str:
    """What the launcher's processes said."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "tritune", *arguments]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def _tritune(*arguments: str) -> None:
    sys.argv = ["tritune", *arguments]
    main.main()


def _forked(*arguments: str) -> str:
    return "".join(done.stderr for done in two_ranks(_tritune, *arguments))


@pytest.mark.parametrize("launch", [_forked, pytest.param(_torchrun, marks=pytest.mark.slow)])
def test_the_command_line_on_two_processes(tmp_path, launch):
    workspace = make_workspace(tmp_path)
    steps = ("--set", "max_steps=8", "--set", "eval_steps=4", "--set", "logging_steps=1", "--set", "save_steps=2")
    said = launch(*map(str, train_arguments(workspace, tmp_path / "run", *steps)))
    assert said.count("ti-g, seed 42") == 1
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history if "loss" in row] == list(range(1, 9))
    coefficients = load_recipe("ti-g").coefficients()
    for row in history:
        if "loss" in row:
            parts = [coefficients[name.removesuffix("_loss")] * row[name] for name in row if name.endswith("_loss")]
            assert row["loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["last"]["step"] == 8
    assert not (tmp_path / "run" / "checkpoints").exists()


def _chooses_a_precision(folder: Path, who: int) -> None:
    rank = this_process().process_index
    precision.multiplies_bf16 = lambda device: rank == who
    (folder / f"{who}-{rank}").write_text(f"{precision.takes_bf16()}")
    # Else one of gloo's threads may still run when the interpreter is gone, which ends the process by a signal.
    this_process().destroy_process_group()


def test_the_first_process_chooses_the_precision_of_all(tmp_path):
    for who in range(2):
        two_ranks(_chooses_a_precision, tmp_path, who)
        assert [(tmp_path / f"{who}-{rank}").read_text() for rank in range(2)] == 2 * [str(who == 0)]


PLAIN = {"n_gpu": 1, "gradient_checkpointing": False, "world_size": 1, "device": torch.device("cpu")}
PLAIN |= {"bf16": False, "fp16": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_deepspeed_enabled": True}, "FSDP and DeepSpeed are not supported"),
        ({"is_fsdp_enabled": True}, "FSDP and DeepSpeed are not supported"),
        ({"args": PLAIN | {"n_gpu": 2}}, "2 GPUs in one process"),
        (
            {
                "args": PLAIN
                | {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
            },
            "use_reentrant=False",
        ),
        (
            {
                "args": PLAIN | {"world_size": 2},
                "coefficients": {"block_output": 1.0},
            },
            "set logits_coefficient above 0",
        ),
    ],
)
def test_what_cannot_be_served_is_refused(change, message):
    plain = {"is_deepspeed_enabled": False, "is_fsdp_enabled": False, "coefficients": {"logits": 1.0}, "args": PLAIN}
    plain["head"] = TEXT_CLASSIFICATION
    change = plain | change
    change["args"] = SimpleNamespace(**change["args"])
    with pytest.raises(TrituneError, match=message):
        DistillationTrainer._check_devices(SimpleNamespace(**change))
