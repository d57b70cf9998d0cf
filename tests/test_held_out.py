"""`select_on: held_out`: the best checkpoint is chosen on training rows that are not trained on."""

import json

import pytest
import torch

import tritune  # noqa: F401  registers the quantized models
from tritune.recipes import load_recipe
from workspace import make_workspace, train_arguments

KEYS = ("--set", "select_on=held_out", "--set", "max_steps=6", "--set", "eval_steps=2", "--set", "learning_rate=1e-3")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def accuracy(folder, rows: list[list[str]]) -> float:
    """By transformers alone, row by row."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        answers = [model(**tokenizer(text, return_tensors="pt")).logits.argmax().item() for text, _ in rows]
    return sum(answer == int(label) for answer, (_, label) in zip(answers, rows, strict=True)) / len(rows)


def rows_of(path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text("utf-8").splitlines()[1:]]


@pytest.mark.parametrize("first", [(), ("--set", "reconstruct_steps=3")], ids=["end to end", "after a reconstruction"])
def test_the_best_is_chosen_on_rows_that_are_not_trained_on(workspace, cli, first, request):
    folder = workspace / request.node.name
    # A scale per token: an answer depends on nothing but its own text.
    code, _, said = cli(*train_arguments(workspace, folder, *KEYS, *first, recipe="ti-g-deploy"), "--set", "bf16=false")
    assert code == 0, said
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = rows_of(workspace / "data" / "train.tsv")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(42)).tolist()
    held_out = [rows[place] for place in order[: len(rows) // 10]]
    assert {split: of["read"]["count"] for split, of in metrics["rows"].items()} == {
        "train": len(rows) - len(held_out), "validation": 60, "held_out": len(held_out),
    }  # fmt: skip
    chosen = json.loads((folder / "best" / "selection.json").read_text())
    assert chosen["value"] == pytest.approx(accuracy(folder / "best", held_out))
    history = [json.loads(line) for line in (folder / "history.jsonl").open()]
    seen = {
        row["step"]: row["eval_accuracy"] for row in history if "eval_accuracy" in row and row["phase"] == "step two"
    }
    assert chosen["value"] == max(seen.values()) if not first else chosen["value"] >= max(seen.values())
    assert seen[6] == pytest.approx(accuracy(folder, held_out))
    dev = rows_of(workspace / "data" / "dev.tsv")
    for model, at in (("best", folder / "best"), ("last", folder)):
        assert metrics[model]["accuracy"] == pytest.approx(accuracy(at, dev)), "scores are those of the dev set"


def test_a_teacher_is_chosen_so_too(workspace, cli):
    task = ("--task", "demo", "--data", workspace / "data")
    keys = ("--set", "max_steps=4", "--set", "eval_steps=2", "--set", "bf16=false", "--set", "select_on=held_out")
    code, _, said = cli("finetune", workspace / "base", *task, *keys, "--output", workspace / "chosen")
    assert code == 0, said
    metrics = json.loads((workspace / "chosen" / "metrics.json").read_text())
    assert metrics["rows"]["held_out"]["read"]["count"] == 20
    dev = rows_of(workspace / "data" / "dev.tsv")
    assert metrics["best"]["accuracy"] == pytest.approx(accuracy(workspace / "chosen", dev))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--unlabelled", "{data}/train.tsv"), "rows of --unlabelled have no labels to select on"),
        (("--set", "augmented=true"), "select_on: held_out and augmented exclude each other"),
        (("--set", "select_on=test"), "select_on must be one of dev, held_out"),
        (("--recipe", "tritune"), "would change nothing: max_steps is 0"),
    ],
)
def test_what_does_not_fit_is_one_line(workspace, cli, more, message):
    keys = KEYS[:2] if "--recipe" in more else KEYS
    given = [str(part).format(data=workspace / "data") for part in more]
    code, _, said = cli(*train_arguments(workspace, workspace / "bad", *keys, *given))
    assert code == 2 and message in said and said.count("error:") == 1
    assert not (workspace / "bad").exists()


def test_few_rows_leave_none(tmp_path):
    from datasets import Dataset, DatasetDict

    from tritune import TrituneError
    from tritune.tasks.registry import get_task
    from tritune.training.job import _with_held_out

    task, rows = get_task("demo"), DatasetDict(train=Dataset.from_dict({"sentence": ["a"] * 9, "label": [0] * 9}))
    with pytest.raises(TrituneError, match="of 9 training rows none can be held out"):
        _with_held_out(rows, task, 0)
    with pytest.raises(TrituneError, match="no labels to select on but those of its dev set"):
        _with_held_out(rows, get_task("features"), 0)
    assert load_recipe("ti-g").select_on == "dev"


def test_runs_of_a_sweep_hold_out_the_same_rows(workspace, tmp_path):
    from tritune import TrituneError
    from tritune.tasks.registry import get_task
    from tritune.training.job import open_job, with_recipe

    keys = ["max_steps=4", "bf16=false", "select_on=held_out"]
    job = open_job(
        workspace / "teacher", get_task("demo"), workspace / "data", load_recipe("ti-g", keys), tmp_path / "a"
    )
    with pytest.raises(TrituneError, match="select_on: all runs of a sweep"):
        with_recipe(job, load_recipe("ti-g", keys[:2]), workspace / "data", tmp_path / "b")
    again = with_recipe(job, load_recipe("ti-g", [*keys, "seed=7", "max_length=9"]), workspace / "data", tmp_path / "c")
    assert again.rows["held_out"]["read"] == job.rows["held_out"]["read"], "whatever the seed and the length"
