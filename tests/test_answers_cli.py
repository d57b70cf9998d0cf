"""Question answering and token classification from files to predictions, through the command line."""

import json

import pytest

import small_answers
from tritune.errors import TrituneError
from tritune.recipes import load_recipe
from tritune.recipes.recipe import FinetuneRecipe, Recipe
from tritune.tasks.registry import get_task
from tritune.training.finetune import finetune
from tritune.training.job import open_job, with_recipe

SET = ("max_length=48", "padding=longest", "per_device_eval_batch_size=4")
KINDS = {"squad_v2": "f1", "conll2003": "entity_f1"}


@pytest.fixture(scope="module", params=KINDS)
def workspace(request, tmp_path_factory):
    """Task name, its data, a teacher with its metrics, and a student with its own."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "conll2003":
        data = small_answers.write_tagged(folder / "data")
    else:
        data = small_answers.write_squad(folder / "data", unanswerable=True)
    base = small_answers.write_base(folder / "base")
    values = (*SET, "max_steps=30", "eval_steps=15", "learning_rate=3e-3", "per_device_train_batch_size=8")
    recipe = load_recipe("finetune", values, FinetuneRecipe)
    metrics = finetune(open_job(base, get_task(request.param), data, recipe, folder / "teacher"))
    return request.param, folder, metrics


def trained(workspace, cli, *more):
    name, folder, _ = workspace
    values = (*SET, "max_steps=8", "eval_steps=4", "loss_average=valid", "ground_truth_coefficient=1", *more)
    overrides = [part for value in values for part in ("--set", value)]
    arguments = ["train", folder / "teacher", "--task", name, "--data", folder / "data", "--recipe", "ti-g"]
    return cli(*arguments, *overrides, "--output", folder / "run", "--json", "--overwrite")


ASKED = {
    "squad_v2": {"question": "where lives Ada?", "context": "Ben lives in Como, Ada lives in Delft."},
    "conll2003": {"tokens": ["Ada", "lives", "in", "Como", "x" * 60]},
}


def test_from_files_to_predictions(workspace, cli, tmp_path):
    name, folder, _ = workspace
    code, out, err = trained(workspace, cli)
    assert code == 0, err
    metrics, on_task = json.loads(out), ("--task", name, "--data", folder / "data")
    assert metrics["metric"] == KINDS[name]
    history = [json.loads(line) for line in (folder / "run" / "history.jsonl").read_text().splitlines()]
    evaluated = [row for row in history if f"eval_{KINDS[name]}" in row]
    # Trainer's own evaluation, and the one that metrics.json tells of.
    assert evaluated[-1][f"eval_{KINDS[name]}"] == metrics["last"][KINDS[name]]
    scores = json.loads(cli("evaluate", folder / "run", *on_task, "--teacher", folder / "teacher", "--json")[1])
    assert {key: scores[key] for key in metrics["last"] if key != "step"} == {
        key: value for key, value in metrics["last"].items() if key != "step"
    }
    assert scores["rows"] == {"squad_v2": 9, "conll2003": 12}[name]
    assert cli("convert", folder / "run", "--output", tmp_path / "small")[0] == 0
    packed = json.loads(cli("evaluate", tmp_path / "small", *on_task, "--json")[1])
    assert {key: packed[key] for key in packed if key in metrics["last"]} == {
        key: scores[key] for key in packed if key in metrics["last"]
    }
    table = tmp_path / "rows.jsonl"
    table.write_text(json.dumps(ASKED[name]) + "\n")
    answers = [cli("predict", folder_, "--input", table)[1] for folder_ in (folder / "run", tmp_path / "small")]
    assert answers[0] == answers[1]
    code, out, err = cli("predict", folder / "run", "--input", table, "--output", tmp_path / "answers.jsonl")
    assert code == 0, err
    answer = json.loads((tmp_path / "answers.jsonl").read_text())
    if name == "squad_v2":
        assert answer["answer"] in answer["context"] and 0 < answer["score"] < 1 and 0 < answer["no_answer_score"] < 1
    else:
        assert len(answer["tags"]) == 5 and set(answer["tags"]) <= set(get_task(name).labels)


def test_block_by_block_with_and_without_labels(workspace, cli, tmp_path):
    """The default recipe; `--unlabelled` reads the inputs of rows alone."""
    name, folder, _ = workspace
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps(ASKED[name]) + "\n" for _ in range(9)), encoding="utf-8")
    keys = [part for value in (*SET[:1], "reconstruct_steps=3", "bf16=false") for part in ("--set", value)]
    for more in ((), ("--unlabelled", asked)):
        arguments = ["train", folder / "teacher", "--task", name, "--data", folder / "data", *keys, *more]
        code, out, err = cli(*arguments, "--output", folder / "blocks", "--json", "--overwrite")
        assert code == 0, err
        metrics = json.loads(out)
        stages = metrics["reconstruction"]["stages"]
        assert [stage["name"] for stage in stages][:2] == ["embeddings", "block 0"] and stages[-1]["name"] == "head"
        assert all(stage["after"] <= stage["before"] for stage in stages)
    assert metrics["rows"]["train"]["read"]["count"] == 9


def test_rows_are_held_out_of_every_kind(workspace, cli):
    name, folder, _ = workspace
    values = (*SET, "max_steps=4", "eval_steps=2", "select_on=held_out")
    keys = [part for value in values for part in ("--set", value)]
    arguments = ["train", folder / "teacher", "--task", name, "--data", folder / "data", "--recipe", "ti-g", *keys]
    code, out, err = cli(*arguments, "--output", folder / "held", "--json", "--overwrite")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert (
        rows["held_out"]["read"]["count"] == (rows["train"]["read"]["count"] + rows["held_out"]["read"]["count"]) // 10
    )
    chosen = json.loads((folder / "held" / "best" / "selection.json").read_text())
    history = [json.loads(line) for line in (folder / "held" / "history.jsonl").read_text().splitlines()]
    last = [row for row in history if row["phase"] == "step two" and f"eval_{KINDS[name]}" in row]
    assert chosen["value"] == max(row[f"eval_{KINDS[name]}"] for row in last)


def test_an_epoch_is_a_pass_over_all_windows(tmp_path):
    task, data = get_task("squad"), small_answers.write_squad(tmp_path / "data")
    values = (*SET, "num_train_epochs=1", "per_device_train_batch_size=1")
    recipe = load_recipe("finetune", values, FinetuneRecipe)
    job = open_job(small_answers.write_base(tmp_path / "base"), task, data, recipe, tmp_path / "teacher")
    assert job.recipe.max_steps == len(job.data.splits["train"]) > 24


def test_an_epoch_of_a_sweep_is_a_pass_over_the_windows_of_its_length(tmp_path):
    task, data = get_task("squad"), small_answers.write_squad(tmp_path / "data")
    values = ("padding=longest", "num_train_epochs=1", "per_device_train_batch_size=1")

    def recipe(length: int) -> Recipe:
        return load_recipe("ternarybert", (*values, f"max_length={length}"))

    base = small_answers.write_base(tmp_path / "base")
    job = open_job(base, task, data, load_recipe("finetune", (*SET, "max_steps=1"), FinetuneRecipe), tmp_path / "t")
    finetune(job)
    job = open_job(tmp_path / "t", task, data, recipe(48), tmp_path / "run")
    other = with_recipe(job, recipe(24), data, tmp_path / "other")
    assert other.recipe.max_steps == len(other.data.splits["train"]) > len(job.data.splits["train"])


def test_fine_tuning_selects_by_the_score_that_evaluate_gives(workspace):
    name, folder, metrics = workspace
    history = [json.loads(line) for line in (folder / "teacher" / "history.jsonl").read_text().splitlines()]
    scores = {row["step"]: row[f"eval_{KINDS[name]}"] for row in history if f"eval_{KINDS[name]}" in row}
    assert scores[30] == metrics["last"][KINDS[name]]
    assert scores[metrics["best"]["step"]] == metrics["best"][KINDS[name]] == max(scores.values())
    losses = [row["loss"] for row in history if "loss" in row]
    assert losses[-1] < losses[0]


def test_what_is_refused_in_one_line(workspace, cli, tmp_path):
    folder = workspace[1]
    code, _, err = trained(workspace, cli, "cache_teacher=true", "schedule=null")
    assert code == 2 and "whose outputs differ in length" in err
    table = tmp_path / "rows.jsonl"
    table.write_text('{"other": 1}\n')
    code, _, err = cli("predict", folder / "teacher", "--input", table)
    assert code == 2 and str(table) in err and "other" in err and err.count("\n") == 1
    table.write_text(json.dumps(ASKED[workspace[0]]) + "\n")
    code, _, err = cli("predict", folder / "teacher", "--input", table, "--probabilities")
    assert code == 2 and "--probabilities" in err
    code, _, err = cli("evaluate", folder / "teacher", "--task", "sst2", "--data", folder / "data")
    assert code == 2 and err.count("\n") == 1
    code, _, err = cli("bench", folder / "teacher", "--output", tmp_path / "bench")
    assert code == 2 and "bench measures models for text-classification" in err


def test_attention_is_analysed(workspace, cli, tmp_path):
    name, folder, _ = workspace
    code, _, err = cli(
        *("analyze", "attention", "--teacher", folder / "teacher", "--student", folder / "teacher"),
        *("--task", name, "--data", folder / "data", "--rows", 4, "--output", tmp_path / "analysis"),
    )
    assert code == 0, err
    assert list((tmp_path / "analysis").rglob("*.json"))


def test_labels_of_another_kind_are_refused(workspace):
    name, folder, _ = workspace
    other = "conll2003" if name == "squad_v2" else "squad"
    with pytest.raises(TrituneError, match="labels"):
        get_task(other).head.check(_config(folder / "teacher"), get_task(other), "model")


def _config(folder):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)
