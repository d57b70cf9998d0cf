"""A small cut of the demo: corpus, untrained model and a teacher of a few steps, made once per test file."""

from pathlib import Path

import pytest

from tritune.cli import demo
from tritune.training.finetune import finetune


def make_workspace(folder: Path) -> Path:
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
