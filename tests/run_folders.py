"""Run folders made of numbers alone, as `tritune train` and `finetune` write them: for tests that only read them."""

import io
import json
from functools import cache
from pathlib import Path

from matplotlib.figure import Figure

from tritune.compression.answers import per_class
from tritune.recipes import load_recipe, to_yaml
from tritune.recipes.recipe import FinetuneRecipe
from tritune.tasks.table import write_table

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
        for ending in ("png", "svg"):
            (folder / f"{title}.{ending}").write_bytes(_picture(index, ending))
    return folder


@cache
def _picture(index: int, ending: str) -> bytes:
    """A small plot as `plots.save` writes it; drawn once, since drawing is what takes the time."""
    figure, buffer = Figure(figsize=(8, 3)), io.BytesIO()
    figure.subplots().plot([0, 1], [index, 2])
    figure.savefig(buffer, format=ending, dpi=150)
    return buffer.getvalue()


def make_compression(folder: Path, answers: list[dict], problem: str = "single_label", **metrics) -> Path:
    """A finished compression with two students; `answers` are the rows of its test part, `metrics` replace parts."""
    folder.mkdir(parents=True)
    names = sorted({part for row in answers for part in str(row["label"]).split("|")})
    multi, metric = problem == "multi_label", "pearson" if problem == "regression" else "accuracy"
    sizes = {"2 bits": 89_028, "2 bits, 12 steps": 89_028}
    tried = []
    for place, (name, size) in enumerate(sizes.items()):
        run = make_run(folder / "students" / str(place), recipe="ternarybert")
        tried.append({"name": name, "folder": f"students/{run.name}", "score": 0.8 + place / 100, "loss": 7.5 - place})
        tried[-1] |= {"size_bytes": size, "ships": place == 1}
    scores = {"scores": {metric: 0.875}, "intervals": {metric: [0.8, 0.95]}, "size_bytes": 10**6, "latency_ms": 8.5}
    values = {
        **{
            "model": "base",
            "data": "tickets.csv",
            "task": "demo",
            "problem": problem,
            "metric": metric,
            "seed": 42,
            "max_loss": 1.0,
            "long_texts": "truncate",
        },
        "labels": None if problem == "regression" else dict.fromkeys(names, 40),
        "columns": {"texts": ["note"], "label": "kind"},
        "file": {"rows": 80, "encoding": "utf-8", "delimiter": "semicolon"},
        **{"notes": ["the first column is an index"], "set_aside": 21, "conflicts": 2, "tried": tried},
        "rows": {"train": 56, "dev": 8, "test": len(answers)},
        "plan": {"max_length": 64, "cut": 0.041},
        **{"teacher": scores, "student": scores | {"size_bytes": 100_000, "latency_ms": 2.25}},
        "loss": {"points": 1.25, "interval": [-0.5, 2.75]},
        "closeness": {"agreement": 0.96},
        "classes": [] if problem == "regression" else per_class(answers, names, multi),
    }
    (folder / "metrics.json").write_text(json.dumps(values | metrics))
    (folder / "plan.json").write_text("{}")
    remarks = [{"line": line, "kept": line > 21, "reason": "blank" if line < 22 else "twice"} for line in range(1, 24)]
    write_table(folder / "rows.csv", remarks)
    write_table(folder / "answers.csv", answers)
    return folder
