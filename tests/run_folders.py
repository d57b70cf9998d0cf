"""Run folders made of numbers alone, as `tritune train` and `finetune` write them: for tests that only read them."""

import json
from pathlib import Path

from matplotlib.figure import Figure

from tritune.plots import save
from tritune.recipes import load_recipe, to_yaml
from tritune.recipes.recipe import FinetuneRecipe

TEACHER = {"accuracy": 0.875, "path": "teacher", "sha256": "a1" * 32, "size_bytes": 1_000_000}


def make_run(folder: Path, recipe: str = "ti-g", metrics: dict | None = None, rows: list | None = None) -> Path:
    """A finished student's run of 12 steps; `metrics` and `rows` replace parts of it."""
    folder.mkdir(parents=True)
    chosen = load_recipe(recipe, ("max_steps=12", *(("step_one_steps=6",) if recipe.startswith("ti-") else ())))
    two_steps = chosen.schedule is not None
    values = {
        "task": "demo",
        "metric": "accuracy",
        "recipe": recipe,
        "seed": 42,
        "steps": {"step one": 6, "step two": 6} if two_steps else {"training": 12},
        "versions": {"tritune": "0.0.7", "torch": "9.8.7", "transformers": "6.5.4", "python": "3.2.1"},
        "teacher": TEACHER,
        "untrained": {"accuracy": 0.5128, "agreement": 0.5376, "kl_to_teacher": 0.98765},
        "seconds": 123.4,
        "seconds_per_step": 0.6789,
        "best": {"accuracy": 0.8418, "agreement": 0.9135, "kl_to_teacher": 0.04321, "step": 9},
        "last": {"accuracy": 0.8268, "agreement": 0.9035, "kl_to_teacher": 0.05432, "step": 12},
        "size_bytes": 89_028,
    }
    if two_steps:
        values["assisted"] = {"assisted_accuracy": 0.8624, "site": "map", "step": 6}
    (folder / "metrics.json").write_text(json.dumps(values | (metrics or {})))
    write_history(folder, history() if rows is None else rows)
    (folder / "recipe.yaml").write_text(to_yaml(chosen))
    (folder / "config.json").write_text("{}")
    return folder


def make_teacher(folder: Path) -> Path:
    """A finished fine-tuning."""
    folder.mkdir(parents=True)
    values = {
        **{"task": "demo", "base_sha256": "b2" * 32, "metric": "accuracy", "recipe": "finetune", "seed": 42},
        **{"base": "base", "steps": {"fine-tuning": 12}, "seconds": 57.7, "seconds_per_step": 0.0229},
        **{"best": {"accuracy": 0.9376, "step": 6}, "last": {"accuracy": 0.9127, "step": 12}, "size_bytes": 999_944},
    }
    (folder / "metrics.json").write_text(json.dumps(values))
    write_history(folder, [{"step": 6, "loss": 0.5}, {"step": 6, "eval_accuracy": 0.9376}, {"step": 12, "loss": 0.25}])
    (folder / "recipe.yaml").write_text(to_yaml(load_recipe("finetune", ("max_steps=12",), FinetuneRecipe)))
    (folder / "config.json").write_text("{}")
    return folder


def history() -> list[dict]:
    """Logs of 12 steps every third, with an evaluation beside each second one."""
    rows = []
    for step in (3, 6, 9, 12):
        losses = {"logits_loss": 1 / step, "hidden_states_loss": 4 / step}
        rows.append({"phase": "step", "step": step, "loss": sum(losses.values()), **losses, "learning_rate": 1e-5})
        if step % 2 == 0:
            scores = {"eval_accuracy": 0.5 + step / 36, "eval_loss": 0.5, "eval_runtime": 1.0}
            rows.append({"phase": "step", "step": step, **scores, "eval_samples_per_second": 60.0})
    return rows


def write_history(folder: Path, rows: list[dict]) -> None:
    """`history.jsonl` of these rows."""
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def add_analysis(run: Path, name: str, numbers: dict, figures: tuple[str, ...] = ("figure",)) -> Path:
    """An analysis with its JSON file and figures in both formats; returns its folder."""
    folder = run / "analysis" / name
    folder.mkdir(parents=True)
    (folder / f"{name}.json").write_text(json.dumps({"analysis": name, **numbers}))
    for index, title in enumerate(figures):
        figure = Figure(figsize=(8, 3))
        figure.subplots().plot([0, 1], [index, 2])
        for ending in ("png", "svg"):
            save(figure, folder / f"{title}.{ending}")
    return folder
