"""A run that is killed goes on as if nothing had been: whole checkpoints only, the same weights in the end."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tritune
from stopped import run_tritune
from tritune import Quantization, TrituneError
from tritune.cli import main
from tritune.training.head_trainer import HeadTrainer
from tritune.training.resume import load_weights, newest_checkpoint
from tritune.training.run_folder import claimed
from tritune.training.trainer import DistillationTrainer
from workspace import make_workspace, train_arguments
from zoo import SERVED

SETTINGS = ("--set", "save_steps=2", "--set", "max_steps=16", "--set", "eval_steps=4", "--set", "logging_steps=1")
KILLS = 22


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def undisturbed(workspace):
    """Weights and history of a run that nobody stopped, and how many changes it made to its folder."""
    done = _run(workspace, "undisturbed")
    assert done.returncode == 0, done.stderr[-2000:]
    return workspace / "undisturbed", int(done.stdout.splitlines()[-1])


def _run(workspace: Path, name: str, *more: str, **stop: object) -> subprocess.CompletedProcess:
    folder = workspace / name
    return run_tritune(*train_arguments(workspace, folder, *SETTINGS, *more), folder=folder, **stop)


def _same_result(folder: Path, reference: Path) -> None:
    assert (folder / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()
    assert (folder / "best" / "model.safetensors").read_bytes() == (
        reference / "best" / "model.safetensors"
    ).read_bytes()
    histories = [[json.loads(line) for line in (run / "history.jsonl").open()] for run in (folder, reference)]
    assert [[row["phase"], row["step"], row.get("loss")] for row in histories[0]] == [
        [row["phase"], row["step"], row.get("loss")] for row in histories[1]
    ]
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (folder, reference)]
    for key in ("teacher", "untrained", "assisted", "best", "last"):
        assert metrics[0][key] == metrics[1][key]
    assert {path.name for path in folder.iterdir()} == {path.name for path in reference.iterdir()}, "left over"


def _kill_and_resume(workspace: Path, undisturbed: tuple[Path, int], name: str, at: int | str) -> None:
    """Kill just before a change to the run's folder, or in the middle of a write, then let it finish."""
    killed = _run(workspace, name, at=at, how=signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    resumed = _run(workspace, name, "--resume")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    _same_result(workspace / name, undisturbed[0])


def _some_change(undisturbed: tuple[Path, int], seed: int) -> int:
    return random.Random(seed).randint(1, undisturbed[1])


AWKWARD = {
    "before there is a run": "open .recipe.yaml.partial",
    "without a best student": "os.rename .best.????????",
    "without an optimizer": "torch.save checkpoints/step_two/checkpoint-4/optimizer.pt",
}


@pytest.mark.parametrize("at", AWKWARD)
def test_killed_at_an_awkward_moment(workspace, undisturbed, at):
    _kill_and_resume(workspace, undisturbed, at, AWKWARD[at])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(KILLS))
def test_killed_anywhere_and_resumed(workspace, undisturbed, seed):
    _kill_and_resume(workspace, undisturbed, f"killed-{seed}", _some_change(undisturbed, seed))


def _here(workspace: Path, name: str, *more: str) -> int:
    """The same command line in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as leaving:
        patch.setattr(sys, "argv", ["tritune", *train_arguments(workspace, workspace / name, *SETTINGS, *more)])
        main.main()
    return leaving.value.code or 0


def test_interrupt_leaves_a_resumable_run(workspace, undisturbed, capsys):
    stopped = _run(workspace, "interrupted", at="open checkpoints/*/trainer_state.json", how=signal.SIGINT)
    assert stopped.returncode == 130, stopped.stderr[-2000:]
    message = stopped.stderr.strip().splitlines()[-1]
    assert "--resume continues from there" in message
    spent = json.loads((workspace / "interrupted" / "checkpoints" / "metrics.json").read_text())["seconds"]
    assert spent > 0, "what was trained until then has taken its time"
    assert _here(workspace, "interrupted", "--resume", "--set", "learning_rate=1e-4") == 2
    assert "another task or recipe" in capsys.readouterr().err
    assert _here(workspace, "interrupted", "--resume") == 0
    assert json.loads((workspace / "interrupted" / "metrics.json").read_text())["seconds"] > spent
    _same_result(workspace / "interrupted", undisturbed[0])


def _fill_the_disk(workspace: Path, name: str, checkpoints: int) -> None:
    """A run in this process that ends when it writes one more checkpoint than so many."""
    save, calls = DistillationTrainer._save_optimizer_and_scheduler, []

    def full(self, folder):
        calls.append(folder)
        if len(calls) > checkpoints:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(self, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistillationTrainer, "_save_optimizer_and_scheduler", full)
        assert _here(workspace, name) == 2


def _said(capsys) -> list[str]:
    """The lines on stderr but for bars."""
    return [line.rpartition("\r")[2] for line in capsys.readouterr().err.strip().splitlines()]


def test_a_full_disk_leaves_what_was_saved(workspace, undisturbed, capsys):
    _fill_the_disk(workspace, "full", checkpoints=1)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No space left on device" in message and "--resume" in message
    assert _here(workspace, "full", "--resume") == 0
    assert "resumed: goes on after step 2 of 16" in _said(capsys)
    _same_result(workspace / "full", undisturbed[0])


@pytest.fixture(scope="module")
def stopped(workspace):
    """A run with checkpoints of step one (4 steps) and of 6 steps in all; to be copied."""
    _fill_the_disk(workspace, "stopped", checkpoints=3)
    return workspace / "stopped"


@pytest.fixture
def moved_data(workspace, tmp_path):
    """The workspace's data in another folder, to be changed."""
    return shutil.copytree(workspace / "data", tmp_path / "data")


OTHER_ROWS = {
    "fewer": ("train.tsv", lambda lines: lines[:121], "train: 200 rows then, 120 now"),
    "in another order": ("train.tsv", lambda lines: [lines[0], *lines[:0:-1]], "train: 200 rows then, 200 others now"),
    "of dev": ("dev.tsv", lambda lines: [*lines, lines[-1]], "validation: 60 rows then, 61 now"),
}


@pytest.mark.parametrize("what", OTHER_ROWS)
def test_a_run_does_not_go_on_with_other_rows(workspace, stopped, moved_data, capsys, what):
    name, change, message = OTHER_ROWS[what]
    path = moved_data / name
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    before = {path: path.stat().st_mtime_ns for path in stopped.rglob("*")}
    assert _here(workspace, "stopped", "--resume", "--data", str(moved_data)) == 2
    said = _said(capsys)
    assert said[-1] == f"error: {stopped}: --resume: the run there was made of other rows ({message})"
    assert not any("goes on" in line for line in said)
    assert {path: path.stat().st_mtime_ns for path in stopped.rglob("*")} == before


def test_a_resumed_run_says_so_and_keeps_its_rows(workspace, undisturbed, stopped, moved_data, capsys):
    """The same rows in another place are the same rows."""
    folder = shutil.copytree(stopped, workspace / "moved")
    arguments = (workspace, folder.name, "--resume", "--data", str(moved_data))
    assert _here(*arguments) == 0
    assert "resumed: goes on after step 6 of 16" in _said(capsys)
    _same_result(folder, undisturbed[0])
    metrics, undisturbed_ones = (json.loads((run / "metrics.json").read_text()) for run in (folder, undisturbed[0]))
    assert metrics["resumed"] == [6] and "resumed" not in undisturbed_ones
    assert metrics["rows"] == undisturbed_ones["rows"]
    counts = {split: {stage: kept["count"] for stage, kept in rows.items()} for split, rows in metrics["rows"].items()}
    assert counts == {"train": {"read": 200, "encoded": 200}, "validation": {"read": 60, "encoded": 60}}
    assert str(workspace) not in json.dumps(metrics["rows"])
    (moved_data / "dev.tsv").write_text("sentence\tlabel\nthe dog sleeps\t1\n")
    assert _here(*arguments) == 2
    assert "(validation: 60 rows then, 1 now)" in _said(capsys)[-1]


def test_a_run_of_before_rows_were_kept_goes_on(workspace, stopped, moved_data, capsys):
    folder = shutil.copytree(stopped, workspace / "old")
    metrics = json.loads((folder / "checkpoints" / "metrics.json").read_text())
    del metrics["rows"]
    (folder / "checkpoints" / "metrics.json").write_text(json.dumps(metrics))
    lines = (moved_data / "train.tsv").read_text().splitlines()
    (moved_data / "train.tsv").write_text("\n".join(lines[:121]) + "\n")
    assert _here(workspace, "old", "--resume", "--data", str(moved_data)) == 0
    assert "rows" not in json.loads((folder / "metrics.json").read_text())


def test_a_run_does_not_go_on_with_another_tokenizer(workspace, stopped, capsys):
    """Its weights are the teacher's, and its rows as they were read, but not what the student would see."""
    path = workspace / "teacher" / "tokenizer.json"
    kept = path.read_text()
    tokenizer = json.loads(kept)
    ids = tokenizer["model"]["vocab"]
    ids["the"], ids["dog"] = ids["dog"], ids["the"]
    path.write_text(json.dumps(tokenizer))
    try:
        assert _here(workspace, "stopped", "--resume") == 2
    finally:
        path.write_text(kept)
    said = _said(capsys)
    message = "the run there read the same rows with another tokenizer (train: 200 rows then, 200 others now)"
    assert said[-1].endswith(message)
    assert _here(workspace, "stopped", "--resume", "--set", "max_length=16") == 2
    assert "another task or recipe" in _said(capsys)[-1]


def test_a_folder_that_cannot_be_made(workspace, capsys, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "mkdir", _read_only)
        assert _here(workspace, "read-only") == 2
    assert "cannot be written to (Read-only file system)" in capsys.readouterr().err


def _read_only(self, *arguments, **options):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_two_runs_into_one_folder_are_refused(workspace, capsys):
    with claimed(workspace / "contested"):
        assert _here(workspace, "contested", "--resume") == 2
    assert "another run is writing" in capsys.readouterr().err


def test_resume_of_a_finished_run_changes_nothing(workspace, undisturbed):
    folder = undisturbed[0]
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert _here(workspace, folder.name, "--resume") == 0
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def _checkpoint(folder: Path, step: int, state: str | None = None) -> Path:
    from safetensors.torch import save_file
    from torch import zeros

    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    save_file({"weight": zeros(2)}, path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt"):
        (path / name).write_bytes(b"x")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}) if state is None else state)
    return path


def test_only_whole_checkpoints_count(tmp_path):
    assert newest_checkpoint(tmp_path / "nowhere") is None
    good = _checkpoint(tmp_path, 2)
    _checkpoint(tmp_path, 4, state='{"global_step": 4')
    _checkpoint(tmp_path, 6, state="[]")
    (_checkpoint(tmp_path, 8) / "optimizer.pt").unlink()
    weights = _checkpoint(tmp_path, 10) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    (_checkpoint(tmp_path, 12) / "trainer_state.json").unlink()
    (tmp_path / "checkpoint-abc").mkdir()
    assert newest_checkpoint(tmp_path) == good
    assert newest_checkpoint(tmp_path) != _checkpoint(tmp_path, 14) == newest_checkpoint(tmp_path)


@pytest.mark.parametrize("family", ["BERT", "ViT", "DINOv2", "DINOv2 with SwiGLU"])
@pytest.mark.parametrize("quantizer", [None, "lsq"])
def test_every_weight_is_read_back(tmp_path, family, quantizer):
    """`save_pretrained` writes ViT under other names, and two weights of each SwiGLU as one."""
    row = SERVED[family.removesuffix(" with SwiGLU")]
    row = replace(row, values=row.values | ({"use_swiglu_ffn": True} if family.endswith("SwiGLU") else {}))
    models = [tritune.prepare(row.build(seed), Quantization(weight_quantizer=quantizer)) for seed in (1, 2)]
    models[0].save_pretrained(tmp_path)
    load_weights(models[1], tmp_path / "model.safetensors")
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name]), name


def test_a_weight_that_is_not_there_is_named(tmp_path):
    model = SERVED["BERT"].build()
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "classifier.weight"}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(TrituneError, match=r"has no classifier\.weight; remove its folder, then --resume"):
        load_weights(model, tmp_path / "model.safetensors")


def test_fine_tuning_goes_on_only_with_what_it_began_with(workspace, tmp_path, cli):
    def arguments(base: Path) -> tuple[object, ...]:
        data = ("--task", "demo", "--data", workspace / "data", "--set", "max_steps=2", "--resume")
        return ("finetune", base, *data, "--output", tmp_path / "mine")

    (tmp_path / "mine").mkdir()
    assert cli(*arguments(workspace / "base"))[0] == 0
    done = (tmp_path / "mine" / "metrics.json").read_bytes()
    assert "another task, data or base model" in cli(*arguments(workspace / "teacher"))[2]
    assert cli(*arguments(workspace / "base"))[0] == 0
    assert (tmp_path / "mine" / "metrics.json").read_bytes() == done
    assert not (tmp_path / "mine" / "checkpoints").exists()
    for known in (("task", "base_sha256", "rows"), ("task", "base_sha256")):  # the latter before rows were kept
        (tmp_path / "mine" / "metrics.json").unlink()  # as a run that was killed left it
        (tmp_path / "mine" / "checkpoints").mkdir()
        origin = {key: json.loads(done)[key] for key in known}
        (tmp_path / "mine" / "checkpoints" / "metrics.json").write_text(json.dumps(origin))
        assert "another task, data or base model" in cli(*arguments(workspace / "teacher"))[2]
        code, _, err = cli(*arguments(workspace / "base"))
        assert code == 0 and "resumed: goes on after step 0 of 2" in err
        metrics = json.loads((tmp_path / "mine" / "metrics.json").read_text())
        assert metrics["resumed"] == [0] and ("rows" in metrics) == ("rows" in known)


def test_fine_tuning_goes_on_only_with_the_rows_it_began_with(workspace, tmp_path, cli, moved_data):
    given = ("--task", "demo", "--data", moved_data, "--set", "max_steps=6", "--set", "save_steps=2", "--resume")
    arguments = ("finetune", workspace / "base", *given, "--output", tmp_path / "mine")
    save = HeadTrainer._save_optimizer_and_scheduler

    def full(self, folder):
        if self.state.global_step > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(self, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeadTrainer, "_save_optimizer_and_scheduler", full)
        assert cli(*arguments)[0] == 2
    whole = (moved_data / "train.tsv").read_text()
    (moved_data / "train.tsv").write_text("".join(f"{line}\n" for line in whole.splitlines()[:100]))
    code, _, err = cli(*arguments)
    assert code == 2 and "the run there was made of other rows (train: 200 rows then, 99 now)" in err
    (moved_data / "train.tsv").write_text(whole)
    code, _, err = cli(*arguments)
    assert code == 0 and "resumed: goes on after step 2 of 6" in err
    assert json.loads((tmp_path / "mine" / "metrics.json").read_text())["resumed"] == [2]
