"""Training in bfloat16 costs no accuracy: the whole demo, three seeds, in both precisions."""

import json
import statistics

import pytest

from tritune.cli import demo
from tritune.training.finetune import finetune

SEEDS = (42, 52, 62)


@pytest.mark.slow
def test_bf16_loses_no_more_than_a_point(cli, tmp_path):
    demo._write_inputs(tmp_path, seed=42)
    finetune(demo._job(tmp_path / "base", tmp_path, demo._recipes(seed=42)["finetune"], tmp_path / "teacher"))
    scores = {"false": [], "true": []}
    for seed in SEEDS:
        for bf16, found in scores.items():
            output = tmp_path / f"bf16-{bf16}-{seed}"
            data = ("--task", "demo", "--data", tmp_path / "data", "--recipe", "ti-g", "--output", output)
            settings = ("max_steps=120", "learning_rate=2e-4", f"seed={seed}", f"bf16={bf16}")
            code, _, err = cli("train", tmp_path / "teacher", *data, *(x for pair in settings for x in ("--set", pair)))
            assert code == 0, err
            found.append(json.loads((output / "metrics.json").read_text())["last"]["accuracy"])
    print(scores)
    assert statistics.mean(scores["true"]) >= statistics.mean(scores["false"]) - 0.01
