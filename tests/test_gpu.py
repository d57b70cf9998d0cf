"""What only an accelerator can show: the golden numbers there, and training in half precision."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from workspace import make_workspace, train_arguments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


def test_the_golden_numbers(golden_folder):
    """TF32 is off by torch's default; test_golden.py is run whole, on the GPU."""
    assert not torch.backends.cuda.matmul.allow_tf32
    command = [sys.executable, "-m", "pytest", "-q", str(Path(__file__).with_name("test_golden.py"))]
    result = subprocess.run(command, env=os.environ | {"TRITUNE_DEVICE": "cuda"}, capture_output=True, text=True)
    assert result.returncode == 0 and "skipped" not in result.stdout, result.stdout[-3000:]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_demo_in_half_precision(cli, tmp_path, precision):
    """Losses stay close to float32's."""
    workspace, losses = make_workspace(tmp_path), {}
    for name, more in (("fp32", ()), (precision, ("--set", f"{precision}=true"))):
        settings = ("--set", "max_steps=40", "--set", "logging_steps=1", "--set", "eval_steps=20")
        code, _, err = cli(*train_arguments(workspace, workspace / name, *settings, *more))
        assert code == 0, err
        lines = map(json.loads, (workspace / name / "history.jsonl").read_text().splitlines())
        losses[name] = [row["loss"] for row in lines if "loss" in row]
    assert losses[precision][0] == pytest.approx(losses["fp32"][0], rel=0.05)
    assert losses[precision][-1] == pytest.approx(losses["fp32"][-1], rel=0.2)
