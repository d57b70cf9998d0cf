"""The command line, end to end on a small cut of the demo corpus, and everything a person can get wrong."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import CommitInfo, HfApi, ModelCard, RepoUrl
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tritune
from tritune.cli import main
from tritune.inference.evaluate import predict
from tritune.recipes import load_recipe
from tritune.training import card
from workspace import make_workspace, train_arguments

STEPS = ("--set", "max_steps=12", "--set", "eval_steps=5", "--set", "logging_steps=1", "--set", "learning_rate=1e-3")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def run_folder(workspace):
    """A finished two-step run."""
    patch = pytest.MonkeyPatch()
    output = workspace / "run"
    patch.setattr(sys, "argv", ["tritune", *_train(workspace, output)])
    with pytest.raises(SystemExit, match="0"):
        main.main()
    patch.undo()
    return output


def _train(workspace: Path, output: Path, *more: object, recipe: str = "ti-g") -> list[str]:
    return train_arguments(workspace, output, *STEPS, *more, recipe=recipe)


def test_the_run_folder_holds_what_the_readme_says(run_folder):
    names = {path.name for path in run_folder.iterdir()}
    assert names == {
        "README.md",
        "best",
        "config.json",
        "history.jsonl",
        "metrics.json",
        "model.safetensors",
        "recipe.yaml",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert load_recipe(run_folder / "recipe.yaml").max_steps == 12
    config = json.loads((run_folder / "config.json").read_text())
    assert config["quantization_config"]["stage"] == "qat" and config["attn_implementation"] == "tritune"


def test_metrics(run_folder, workspace):
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert metrics["metric"] == "accuracy" and metrics["seed"] == 42
    assert metrics["steps"] == {"step one": 3, "step two": 9}
    assert metrics["assisted"]["site"] == "map" and metrics["assisted"]["step"] == 3
    assert 0 <= metrics["assisted"]["assisted_accuracy"] <= 1
    assert metrics["teacher"]["path"] == str(workspace / "teacher") and len(metrics["teacher"]["sha256"]) == 64
    assert metrics["last"]["step"] == 12 and 3 < metrics["best"]["step"] <= 12
    assert metrics["best"]["accuracy"] >= metrics["last"]["accuracy"]
    for key in ("untrained", "best", "last"):
        assert 0 <= metrics[key]["agreement"] <= 1 and metrics[key]["kl_to_teacher"] >= 0
    assert metrics["size_bytes"] < metrics["teacher"]["size_bytes"] / 8


def test_best_is_the_best_of_the_last_phase(run_folder):
    metrics = json.loads((run_folder / "metrics.json").read_text())
    history = [json.loads(line) for line in (run_folder / "history.jsonl").read_text().splitlines()]
    scores = {
        row["step"]: row["eval_accuracy"] for row in history if "eval_accuracy" in row and row["phase"] == "step two"
    }
    assert sorted(scores) == [8, 12]
    assert metrics["best"]["accuracy"] == pytest.approx(max(scores.values()))
    assert metrics["best"]["step"] == min(step for step, score in scores.items() if score == max(scores.values()))


def test_history(run_folder):
    rows = [json.loads(line) for line in (run_folder / "history.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert [row["site"] for row in steps] == ["projection", "map", "map"] + [None] * 9
    assert [row["phase"] for row in steps] == ["step one"] * 3 + ["step two"] * 9
    assert steps[0]["learning_rate"] == steps[3]["learning_rate"] == 0
    parts = ("logits_loss", "hidden_states_loss", "attention_scores_loss", "block_output_loss")
    for row in steps:
        assert row["loss"] == pytest.approx(sum(row[part] for part in parts), rel=1e-4)
        assert "context_loss" not in row


def test_evaluate_repeats_the_metrics(cli, run_folder, workspace):
    metrics = json.loads((run_folder / "metrics.json").read_text())
    for folder, key in ((run_folder, "last"), (run_folder / "best", "best")):
        code, out, _ = cli(
            *("evaluate", folder, "--task", "demo", "--data", workspace / "data", "--json"),
            *("--teacher", workspace / "teacher"),
        )
        scores = json.loads(out)
        assert code == 0 and scores["rows"] == 60
        for name in ("accuracy", "agreement", "kl_to_teacher"):
            assert scores[name] == metrics[key][name]


def test_evaluate_says_whether_these_are_the_rows_that_selected(cli, run_folder, workspace, tmp_path):
    data = shutil.copytree(workspace / "data", tmp_path / "data")
    moved = shutil.copytree(run_folder, tmp_path / "run")

    def said(model: Path, *more: object) -> str:
        code, out, err = cli("evaluate", model, "--task", "demo", "--data", data, "--json", *more)
        assert code == 0 and json.loads(out)["rows"] > 0
        return err

    metrics = json.loads((moved / "metrics.json").read_text())
    scores = json.loads(cli("evaluate", moved, "--task", "demo", "--data", data, "--json")[1])
    assert scores["rows_sha256"] == metrics["rows"]["validation"]["read"]["sha256"]
    for model in (moved, moved / "best", workspace / "teacher"):
        assert said(model) == said(model, "--set", "max_length=20") == ""
    lines = (data / "dev.tsv").read_text().splitlines()
    for rows in ([*lines[:-1], lines[-2]], lines[:31]):
        (data / "dev.tsv").write_text("\n".join(rows) + "\n")
        for model in (moved, moved / "best", workspace / "teacher"):
            message = f"these {len(rows) - 1} dev rows are not the 60 that selected its best model"
            assert said(model) == f"{model}: {message}\n"
    shutil.copytree(moved / "best", tmp_path / "alone")
    assert said(tmp_path / "alone") == ""
    for content in ('{"rows": 3}', "no JSON", "[]"):
        (moved / "metrics.json").write_text(content)
        assert said(moved) == ""


def test_a_run_in_bf16_is_measured_in_float32(cli, workspace, tmp_path):
    """The trainer leaves no autocast behind in the student."""
    code, _, err = cli(*_train(workspace, tmp_path / "run"), "--set", "bf16=true")
    assert code == 0, err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    arguments = ("--task", "demo", "--data", workspace / "data", "--teacher", workspace / "teacher", "--json")
    scores = json.loads(cli("evaluate", tmp_path / "run", *arguments)[1])
    for name in ("accuracy", "agreement", "kl_to_teacher"):
        assert scores[name] == metrics["last"][name]


def test_auto_classes_give_the_student_back(run_folder):
    model = AutoModelForSequenceClassification.from_pretrained(run_folder)
    twin = AutoModelForSequenceClassification.from_pretrained(run_folder)
    assert model.config.quantization_config.stage == "qat"
    tokens = AutoTokenizer.from_pretrained(run_folder)("the dog near the cats often sleeps", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model.eval()(**tokens).logits, twin.eval()(**tokens).logits)
    assert tritune.instrument(model) is model


def test_single_phase_recipe(cli, workspace, tmp_path):
    code, out, _ = cli(*_train(workspace, tmp_path / "run", "--json", recipe="ternarybert"))
    metrics = json.loads(out)
    assert code == 0 and metrics["steps"] == {"training": 12} and "assisted" not in metrics


def test_steps_alone_equal_the_two_of_one_run(cli, workspace, run_folder, tmp_path):
    assert cli(*_train(workspace, tmp_path / "one", "--phase", "one"))[0] == 0
    assert cli(*_train(workspace, tmp_path / "two", "--phase", "two", "--from", tmp_path / "one"))[0] == 0
    whole = AutoModelForSequenceClassification.from_pretrained(run_folder).state_dict()
    parts = AutoModelForSequenceClassification.from_pretrained(tmp_path / "two").state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_same_seed_same_result(cli, workspace, run_folder, tmp_path):
    assert cli(*_train(workspace, tmp_path / "again"))[0] == 0
    first, second = (folder / "model.safetensors" for folder in (run_folder, tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()


def test_finetune_keeps_the_best(workspace):
    metrics = json.loads((workspace / "teacher" / "metrics.json").read_text())
    assert metrics["best"]["accuracy"] >= metrics["last"]["accuracy"] and metrics["best"]["step"] in (5, 10)
    assert not (workspace / "teacher" / "best").exists()


def test_finetune_with_the_published_optimizer(cli, workspace, tmp_path):
    arguments = ("finetune", workspace / "base", "--task", "demo", "--data", workspace / "data", *STEPS)
    code, out, _ = cli(*arguments, "--set", "optimizer=bert_adam", "--output", tmp_path / "t", "--json")
    assert code == 0 and json.loads(out)["steps"] == {"fine-tuning": 12}


def test_recipes(cli):
    assert "ti-inverted" in cli("recipes")[1]
    assert json.loads(cli("recipes", "--json")[1])["ti-m"]["schedule"] == "map"
    assert "schedule: gradual" in cli("recipes", "ti-g")[1]
    assert "step_one_steps" in cli("recipes", "--keys")[1]
    assert cli("recipes", "ti-x")[0] == 2


@pytest.mark.parametrize("command", ["", "finetune", "train", "evaluate", "report", "recipes", "demo"])
def test_help(cli, command):
    code, out, _ = cli(*filter(None, [command]), "--help")
    assert code == 0 and "Usage" in out


def test_predictions_do_not_depend_on_the_mode_before(run_folder, workspace):
    model = AutoModelForSequenceClassification.from_pretrained(run_folder).train()
    rows = [{"input_ids": torch.tensor([5, 6, 7])}] * 3

    def collate(batch):
        return {"input_ids": torch.stack([row["input_ids"] for row in batch])}

    first = predict(model, rows, collate, 2)
    assert model.training
    assert np.array_equal(first, predict(model.eval(), rows, collate, 2))


BAD_TRAINING = {
    "unknown task": (["--task", "sst3"], "there is no task 'sst3'"),
    "unknown recipe": (["--recipe", "ti-x"], "there is no recipe 'ti-x'"),
    "unknown key": (["--set", "max_stps=3"], "did you mean max_steps"),
    "bits out of range": (["--set", "weight_bits=9"], "weight_bits must be a whole number from 1 to 8"),
    "too long": (["--set", "max_length=33"], "max_length 33 is more than the 32 positions"),
    "missing data": (["--data", "nowhere"], "nowhere"),
    "layer out of range": (["--set", "layers=[7]"], "layers"),
    "one phase only": (["--recipe", "ternarybert", "--phase", "one"], "has one phase only"),
    "start from a float model": (["--from", "{teacher}"], "a float model"),
    "output is the input": (["--output", "{teacher}", "--overwrite"], "also an input"),
    "output is an input": (["--output", "{data}"], "also an input"),
    "budget too short": (["--set", "max_steps=1"], "raise max_steps"),
    "two precisions": (["--set", "fp16=true", "--set", "bf16=true"], "fp16 and bf16 exclude each other"),
    "no room for text": (["--set", "max_length=2"], "leaves no room"),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_input_to_train(cli, workspace, tmp_path, case):
    options, message = BAD_TRAINING[case]
    places = {"teacher": workspace / "teacher", "data": workspace / "data"}
    before = sorted(workspace.rglob("*"))
    code, out, err = cli(*_train(workspace, tmp_path / "run"), *(option.format(**places) for option in options))
    assert code == 2 and out == ""
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ") and message in line
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists() and sorted(workspace.rglob("*")) == before


@pytest.mark.skipif(torch.accelerator.is_available(), reason="only a CPU refuses")
def test_fp16_on_a_cpu(cli, workspace, tmp_path):
    code, _, err = cli(*_train(workspace, tmp_path / "run"), "--set", "fp16=true")
    assert code == 2 and "fp16: a CPU cannot train in float16" in err and not (tmp_path / "run").exists()


def _folder(path: Path, files: dict[str, str]) -> Path:
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


BAD_DATA = {
    "columns": ({"train.tsv": "text\tlabel\na b\t1\n", "dev.tsv": "sentence\tlabel\na\t1\n"}, "train.tsv"),
    "empty split": ({"train.tsv": "sentence\tlabel\na\t1\n", "dev.tsv": "sentence\tlabel\n"}, "dev.tsv"),
    "label": ({"train.tsv": "sentence\tlabel\na\t1\n", "dev.tsv": "sentence\tlabel\na\t2\n"}, "dev.tsv"),
    "no dev": ({"train.tsv": "sentence\tlabel\na\t1\n"}, "dev.tsv"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(cli, workspace, tmp_path, case):
    files, name = BAD_DATA[case]
    data = _folder(tmp_path / "data", files)
    code, _, err = cli(*_train(workspace, tmp_path / "run"), "--data", data)
    assert code == 2 and name in err.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


def _copy_model(workspace: Path, target: Path, **changes: object) -> Path:
    config = json.loads((workspace / "teacher" / "config.json").read_text()) | changes
    target.mkdir()
    for path in (workspace / "teacher").iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_bad_models(cli, workspace, tmp_path):
    def line(model: object, *more: object) -> str:
        arguments = ("train", model, "--task", "demo", "--data", workspace / "data", "--output", tmp_path / "run")
        code, _, err = cli(*arguments, *more)
        assert code == 2 and not (tmp_path / "run").exists()
        return err.strip().splitlines()[-1]

    assert "no such folder" in line("./nowhere")
    assert "no config.json" in line(_folder(tmp_path / "empty", {}))
    assert "config cannot be read" in line(_folder(tmp_path / "junk", {"config.json": "{"}))
    assert "no model.safetensors" in line(_folder(tmp_path / "weightless", {"config.json": '{"model_type": "bert"}'}))
    three = {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    assert "has 3 labels, Demo has 2" in line(_copy_model(workspace, tmp_path / "three", **three))
    swapped = {"id2label": {"0": "acceptable", "1": "unacceptable"}, "label2id": {"acceptable": 0, "unacceptable": 1}}
    assert "are in the order" in line(_copy_model(workspace, tmp_path / "swapped", **swapped))

    truncated = _copy_model(workspace, tmp_path / "truncated")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "not a model that can be loaded" in line(truncated)

    headless = tmp_path / "headless"
    AutoModelForSequenceClassification.from_pretrained(workspace / "teacher").bert.save_pretrained(headless)
    AutoTokenizer.from_pretrained(workspace / "teacher").save_pretrained(headless)
    config = json.loads((headless / "config.json").read_text())
    assert "fine-tune it first" in line(headless) and config["architectures"] == ["BertModel"]

    larger = _copy_model(workspace, tmp_path / "larger")
    tokenizer = AutoTokenizer.from_pretrained(larger)
    tokenizer.add_tokens(["one", "two", "three"])
    tokenizer.save_pretrained(larger)
    assert "they do not belong together" in line(larger)

    broken = tmp_path / "broken"
    model = AutoModelForSequenceClassification.from_pretrained(workspace / "teacher")
    model.classifier.weight.data[0, 0] = float("nan")
    model.save_pretrained(broken)
    assert "classifier.weight holds NaN" in line(broken)


def test_a_run_is_not_overwritten_unasked(cli, workspace, run_folder):
    before = (run_folder / "metrics.json").read_bytes()
    code, _, err = cli(*_train(workspace, run_folder))
    assert code == 2 and "--overwrite" in err and (run_folder / "metrics.json").read_bytes() == before


def test_a_student_is_no_teacher(cli, run_folder, workspace, tmp_path):
    arguments = ("train", run_folder, "--task", "demo", "--data", workspace / "data", "--output", tmp_path / "run")
    code, _, err = cli(*arguments)
    assert code == 2 and "quantized already" in err and not (tmp_path / "run").exists()


def test_overwrite_leaves_the_files_of_others(cli, workspace, tmp_path):
    output = _folder(tmp_path / "run", {"notes.txt": "mine"})
    assert cli(*_train(workspace, output))[0] == 2
    code, _, err = cli(*_train(workspace, output, "--overwrite"))
    assert code == 2 and "holds files but no run" in err
    (output / "recipe.yaml").write_text("name: earlier\n")
    assert cli(*_train(workspace, output, "--overwrite"))[0] == 0
    assert (output / "notes.txt").read_text() == "mine"


def test_model_card(run_folder):
    card = ModelCard.load(run_folder / "README.md")
    metrics = json.loads((run_folder / "metrics.json").read_text())
    assert card.data.eval_results[0].metric_value == round(metrics["last"]["accuracy"], 4)
    assert f"| last | {100 * metrics['last']['accuracy']:.1f} |" in card.text and "import tritune" in card.text


def test_dry_run_shows_and_writes_nothing(cli, workspace, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = cli(*_train(workspace, tmp_path / "run", "--dry-run", "--set", "weight_bits=4"))
    assert code == 0 and not (tmp_path / "run").exists()
    assert "step_one_steps: 3" in out and "step one: 3 steps" in out and "step two: 9 steps" in out
    squeezed = " ".join(out.replace("│", " ").split())
    assert "bert.encoder.layer.*.attention.self.query 3 27,648 4 bit 8 bit" in squeezed
    assert "classifier 1 192 float float" in squeezed
    assert "bert.embeddings.word_embeddings 1" in squeezed


class _StandIn:
    """What the hub's client would be asked to do, done in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def create_repo(self, *arguments, **options):
        return RepoUrl("https://huggingface.co/me/ternary")

    def create_commit(self, *arguments, operations=(), **options):
        for operation in operations:
            with operation.as_file() as file:
                (self.folder / operation.path_in_repo).write_bytes(file.read())
        return CommitInfo("https://huggingface.co/me/ternary/commit/1", "", "", "1")


def _no_card_yet(cls, *arguments, **options):
    raise EntryNotFoundError("404")


def test_push_to_hub(cli, workspace, tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    hub.mkdir()
    stand_in = _StandIn(hub)
    monkeypatch.setattr(HfApi, "create_repo", lambda self, *a, **k: stand_in.create_repo(*a, **k))
    monkeypatch.setattr(HfApi, "create_commit", lambda self, *a, **k: stand_in.create_commit(*a, **k))
    monkeypatch.setattr(
        HfApi,
        "upload_file",
        lambda self, **k: (hub / k["path_in_repo"]).write_bytes(Path(k["path_or_fileobj"]).read_bytes()),
    )
    monkeypatch.setattr(ModelCard, "load", classmethod(_no_card_yet))
    monkeypatch.setattr(ModelCard, "validate", lambda self, **options: None)  # asks the hub
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    run = tmp_path / "run"
    code, _, err = cli(*_train(workspace, run, "--push-to-hub", "me/ternary"))
    assert code == 0, err.splitlines()[-1]
    assert (hub / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert json.loads((hub / "config.json").read_text())["attn_implementation"] == "tritune"
    assert (hub / "tokenizer.json").exists() and 'from_pretrained("me/ternary")' in (hub / "README.md").read_text()


def test_push_to_hub_without_a_login_is_refused_before_training(cli, workspace, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(card, "get_token", lambda: None)
    code, _, err = cli(*_train(workspace, tmp_path / "run", "--push-to-hub", "me/ternary"))
    assert code == 2 and "hf auth login" in err and not (tmp_path / "run").exists()


def test_curves_for_tensorboard_outlive_the_checkpoints(cli, workspace, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert cli(*_train(workspace, tmp_path / "run", "--set", "report_to=tensorboard"))[0] == 0
    for phase, steps in (("step_one", 3), ("step_two", 9)):
        events = EventAccumulator(str(tmp_path / "run" / "runs" / phase)).Reload()
        assert [event.step for event in events.Scalars("train/block_output_loss")] == list(range(1, steps + 1))


def test_an_unknown_tracker_is_refused(cli, workspace, tmp_path):
    code, _, err = cli(*_train(workspace, tmp_path / "run", "--set", "report_to=paper"))
    assert code == 2 and "'paper' is not installed or not known" in err and not (tmp_path / "run").exists()
