"""What tests of the command line share: a small cut of the demo (corpus, model, teacher), and the line itself."""

import csv
import io
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest

from tritune.cli import demo, main
from tritune.training.finetune import finetune


def make_workspace(folder: Path) -> Path:
    """A copy of what `write_workspace` writes, which each process does once."""
    shutil.copytree(Path(_kept().name) / "workspace", folder, dirs_exist_ok=True)
    return folder


@cache
def _kept() -> tempfile.TemporaryDirectory:
    kept = tempfile.TemporaryDirectory(prefix="tritune-tests-")
    write_workspace(Path(kept.name) / "workspace")
    return kept


def write_workspace(folder: Path) -> Path:
    """`data/`, `base/` and `teacher/` in `folder`, as `tritune demo` makes them, only smaller."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TRAIN_ROWS", 200)
        patch.setattr(demo, "DEV_ROWS", 60)
        patch.setattr(
            demo,
            "TEACHER",
            ("max_steps=10", "eval_steps=5", "learning_rate=1e-3", "train_sampling_strategy=sequential"),
        )
        demo._write_inputs(folder, seed=0)
        finetune(demo._job(folder / "base", folder, demo._recipes(seed=0)["finetune"], folder / "teacher"))
    return folder


def train_arguments(workspace: Path, output: Path, *more: object, recipe: str = "ti-g") -> list[str]:
    """The command line of a training on the workspace, after the program's name."""
    arguments = ["train", workspace / "teacher", "--task", "demo", "--data", workspace / "data", "--recipe", recipe]
    return [str(argument) for argument in (*arguments, "--output", output, *more)]


class Cli:
    """Runs a command line in this process, with bytes on standard input: exit code, stdout, stderr."""

    def __init__(self, capsys, monkeypatch, command: tuple[str, ...] = ()):
        self.capsys, self.monkeypatch, self.command = capsys, monkeypatch, command

    def __call__(self, *arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        self.capsys.readouterr()
        self.monkeypatch.setattr(sys, "argv", ["tritune", *self.command, *map(str, arguments)])
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            main.main()
            code = 0
        except SystemExit as leaving:
            code = leaving.code or 0
        return code, *self.capsys.readouterr()


def write_texts(folder: Path, text: Callable[[random.Random, int], str]) -> None:
    """Add `train.csv` and `dev.csv`, texts with the labels yes and no in turn; `text` is given the row's number."""
    draw = random.Random(1)
    for name, count in (("train", 60), ("dev", 24)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            rows.writerows([text(draw, i), "yes" if i % 2 else "no"] for i in range(count))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def trained_on_texts(folder: Path, keys: Sequence[str]) -> tuple[Path, Path, Path]:
    """A teacher, its student and that packed, of a folder with texts, by the command line."""

    def run(*line: object) -> None:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as leaving:
            patch.setattr("sys.argv", ["tritune", *map(str, line)])
            main.main()
        assert not leaving.value.code, line

    files = ("--train-file", folder / "train.csv", "--dev-file", folder / "dev.csv")
    tuned, student, packed = (folder / name for name in ("tuned", "student", "packed"))
    task = ("--task", "text-classification", *files)
    run("finetune", folder / "base", *task, *keys, "--set", "max_steps=4", "--output", tuned)
    run("train", tuned, "--task", tuned / "task.yaml", *keys, "--set", "reconstruct_steps=4", "--output", student)
    run("convert", student, "--output", packed)
    return tuned, student, packed
