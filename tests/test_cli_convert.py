"""`tritune convert`: from a run to a folder that evaluates and predicts alike, or one line and nothing written."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import tritune
from families import FAMILIES
from tritune.checkpoints.load import load_pretrained
from tritune.recipes import load_recipe, to_yaml
from tritune.training.run_folder import BEST
from workspace import make_workspace, train_arguments


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A teacher, and a run folder such as a training leaves, whose last student differs from its best."""
    folder = make_workspace(tmp_path_factory.mktemp("convert"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher")
    for run, shift in ((folder / "run", 0.1), (folder / "run" / BEST, 0.0)):
        student = tritune.prepare(load_pretrained(AutoModelForSequenceClassification, folder / "teacher"))
        with torch.no_grad():
            student.classifier.weight.add_(shift * torch.randn(student.classifier.weight.shape))
        student.save_pretrained(run)
        tokenizer.save_pretrained(run)
        (run / "recipe.yaml").write_text(to_yaml(load_recipe("ti-g", ["max_length=32"])))
    return folder


@pytest.fixture
def small(workspace, tmp_path, cli):
    """What the command wrote, and what it printed."""
    code, out, err = cli("convert", workspace / "run", "--output", tmp_path / "small", "--json")
    assert code == 0, err
    return tmp_path / "small", json.loads(out)


def test_the_packed_run_scores_and_predicts_as_the_run(workspace, small, cli):
    folder, sizes = small
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "recipe.yaml", "tokenizer.json", "tokenizer_config.json"} <= names
    assert (folder / "recipe.yaml").read_bytes() == (workspace / "run" / "recipe.yaml").read_bytes()
    assert sizes["size_bytes"] + sizes["tokenizer_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert sizes["size_bytes"] == sizes["other_bytes"] + sum(part["size_bytes"] for part in sizes["parts"])
    scores = []
    for model in (workspace / "run", folder):
        task = ("--task", "demo", "--data", workspace / "data", "--teacher", workspace / "teacher", "--json")
        code, out, err = cli("evaluate", model, *task)
        assert code == 0, err
        scores.append(json.loads(out))
    for score in scores:
        del score["model"], score["size_bytes"]
    assert scores[0] == scores[1]
    answers = [
        cli("predict", model, "--input", workspace / "data" / "dev.tsv", "--probabilities")
        for model in (workspace / "run", folder)
    ]
    assert answers[0][0] == 0 and answers[0][1] == answers[1][1]


def test_the_table(workspace, tmp_path, cli):
    code, out, err = cli("convert", workspace / "run", "--output", tmp_path / "small", "--dtype", "float16")
    assert code == 0, err
    for word in ("embeddings", "encoder", "pooler", "float rest", "all but the tokenizer", "packed MB"):
        assert word in out


@torch.no_grad()
def test_last_and_best(workspace, small, tmp_path, cli):
    assert cli("convert", workspace / "run", "--best", "--output", tmp_path / "best")[0] == 0
    for packed, run in ((small[0], workspace / "run"), (tmp_path / "best", workspace / "run" / BEST)):
        assert torch.equal(tritune.load(packed).classifier.weight, tritune.load(run).classifier.weight)
    code, _, err = cli("convert", workspace / "teacher", "--best", "--output", tmp_path / "other")
    assert code == 2 and "--best: there is no" in err and not (tmp_path / "other").exists()


def test_a_pipeline(small):
    classify = pipeline("text-classification", model=str(small[0]))
    (answer,) = classify("the dog near the cats often sleeps")
    assert answer["label"] in AutoModelForSequenceClassification.from_pretrained(small[0]).config.id2label.values()


def test_what_is_in_the_way(workspace, small, tmp_path, cli):
    folder, _ = small
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run = workspace / "run"
    for arguments, message in (
        ((run, "--output", folder), "holds a run or other files"),
        ((run, "--output", run), "also an input"),
        ((run, "--output", workspace), "also an input"),
        ((workspace / "teacher", "--output", tmp_path / "new"), "not a checkpoint of tritune"),
        ((folder, "--output", tmp_path / "new"), "already packed"),
        ((tmp_path / "nowhere", "--output", tmp_path / "new"), "no such folder"),
    ):
        code, out, err = cli("convert", *arguments)
        assert code == 2 and message in " ".join(err.split()) and not out, message
        assert err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before and not (tmp_path / "new").exists()
    code, _, err = cli("convert", run, "--output", folder, "--overwrite")
    assert code == 0, err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_failure_halfway_leaves_nothing(workspace, tmp_path, cli, monkeypatch):
    monkeypatch.setattr("tritune.deploy.pack.load_tokenizer", lambda *args, **kwargs: Unwilling())
    with pytest.raises(OSError, match="full"):
        cli("convert", workspace / "run", "--output", tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


class Unwilling:
    """A tokenizer for which the disk has no room left."""

    def save_pretrained(self, folder):
        raise OSError("the disk is full")


def test_packed_models_are_not_trained(workspace, small, tmp_path, cli):
    folder, _ = small
    code, _, err = cli(*train_arguments(workspace, tmp_path / "run", "--from", folder))
    assert code == 2 and "packed" in err and "train" in err and err.count("\n") == 1
    arguments = train_arguments(workspace, tmp_path / "run")
    arguments[1] = str(folder)
    code, _, err = cli(*arguments)
    assert code == 2 and "quantized already" in err and not (tmp_path / "run").exists()


@torch.no_grad()
def test_images_too(tmp_path, cli):
    student = tritune.prepare(FAMILIES["vit"].build()).eval()
    student.save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "preprocessor_config.json").write_text("{}")
    code, _, err = cli("convert", tmp_path / "run", "--output", tmp_path / "small")
    assert code == 0, err
    assert (tmp_path / "small" / "preprocessor_config.json").read_text() == "{}"
    batch = FAMILIES["vit"].batch()
    assert torch.equal(tritune.load(tmp_path / "small")(**batch).logits, student(**batch).logits)


def test_a_damaged_folder_is_one_line(small, workspace, cli, tmp_path):
    folder = shutil.copytree(small[0], tmp_path / "damaged")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    for arguments in (("evaluate", folder, "--task", "demo", "--data", workspace / "data"), ("predict", folder)):
        code, _, err = cli(*arguments, stdin=b"the dog sleeps\n")
        assert code == 2 and "model.safetensors" in err and err.count("\n") == 1
