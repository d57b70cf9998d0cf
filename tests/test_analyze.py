"""`tritune analyze` on a small cut of the demo corpus: what it writes, and everything a person can get wrong."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from tritune.cli import main
from tritune.recipes import load_recipe
from workspace import make_workspace, train_arguments

STEPS = ("--set", "max_steps=4", "--set", "eval_steps=2")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = make_workspace(tmp_path_factory.mktemp("workspace"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="0"):
        patch.setattr(sys, "argv", ["tritune", *train_arguments(folder, folder / "run", *STEPS)])
        main.main()
    return folder


@pytest.fixture
def analyze(cli, workspace):
    """Runs an analysis of the workspace's run against its teacher."""

    def run(name: str, *more: object, student: object = None) -> tuple[int, str, str]:
        models = ("--teacher", workspace / "teacher", "--student", student or workspace / "run")
        return cli("analyze", name, *models, "--task", "demo", "--data", workspace / "data", *more)

    return run


PICTURES = {
    "attention": ("attention",),
    "norms": ("norms", "norm_curves"),
    "ranges": ("ranges",),
    "layers": ("layers",),
    "heads": ("heads",),
}
ROWS = dict.fromkeys(("attention", "norms", "layers"), ("--rows", "4"))


@pytest.mark.parametrize("name", PICTURES)
def test_an_analysis_lands_in_the_students_folder(analyze, workspace, name):
    code, out, err = analyze(name, *ROWS.get(name, ()))
    folder = workspace / "run" / "analysis" / name
    assert code == 0, err
    files = {f"{picture}.{ending}" for picture in PICTURES[name] for ending in ("png", "svg")}
    assert {path.name for path in folder.iterdir()} == {f"{name}.json", *files}
    written = json.loads((folder / f"{name}.json").read_text())
    assert written["analysis"] == name
    assert "run" in (written.get("models") or written["students"])
    assert str(folder) in out.replace("\n", "")


def test_students_side_by_side(analyze, workspace, tmp_path):
    shutil.copytree(workspace / "run", tmp_path / "twin")
    assert analyze("layers", "--student", tmp_path / "twin", "--output", tmp_path / "out", "--rows", "3")[0] == 0
    written = json.loads((tmp_path / "out" / "layers.json").read_text())
    assert written["students"] == ["run", "twin", "quantized, untrained"]
    assert written["mse"][0] == written["mse"][1] != written["mse"][2]


def test_one_sentence(analyze, tmp_path):
    code, _, err = analyze("heads", "--text", "the dog was old", "--heads", "0.1, 2.0", "--output", tmp_path)
    assert code == 0, err
    written = json.loads((tmp_path / "heads.json").read_text())
    assert written["tokens"] == ["[CLS]", "the", "dog", "was", "old", "[SEP]"]
    assert written["heads"] == [[0, 1], [2, 0]]
    rows = torch.tensor(written["maps"]).sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


def test_a_sentence_where_neither_tokenizer_nor_batches_have_a_length(analyze, workspace, tmp_path):
    student = shutil.copytree(workspace / "run", tmp_path / "student")
    settings = json.loads((student / "tokenizer_config.json").read_text())
    settings.pop("model_max_length", None)
    (student / "tokenizer_config.json").write_text(json.dumps(settings))
    more = ("--set", "padding=longest", "--set", "max_length=4", "--output", tmp_path / "out")
    code, _, err = analyze("heads", "--text", "the dog was old", *more, student=student)
    assert code == 0, err
    assert json.loads((tmp_path / "out" / "heads.json").read_text())["tokens"] == ["[CLS]", "the", "dog", "[SEP]"]


def test_ranges_over_many_rows(analyze, tmp_path):
    assert analyze("ranges", "--rows", "5", "--tensor", "context", "--output", tmp_path)[0] == 0
    written = json.loads((tmp_path / "ranges.json").read_text())
    assert (written["rows"], written["tokens"], written["tensor"]) == (5, None, "context")


def test_sensitivity_suggests_a_recipe(cli, workspace, tmp_path):
    arguments = ("--model", workspace / "teacher", "--task", "demo", "--data", workspace / "data", "--rows", "20")
    code, out, err = cli("analyze", "sensitivity", *arguments, "--output", tmp_path)
    assert code == 0, err
    written = json.loads((tmp_path / "sensitivity.json").read_text())
    if written["suggestion"] is None:
        assert "nothing to suggest" in out
    else:
        suggested = load_recipe(tmp_path / "recipe.yaml")
        value = getattr(suggested, written["suggestion"]["key"])
        assert (list(value) if isinstance(value, tuple) else value) == written["suggestion"]["value"]
        assert suggested.name == "ti-g-mixed"


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("heads", ("--heads", "9.0"), "no head 9.0: the models have layers 0 to"),
        ("heads", ("--heads", "1-2"), "write LAYER.HEAD"),
        ("heads", ("--row", "1000000"), "--row 1000000: the dev set has rows 0 to"),
        ("ranges", ("--text", " "), "--text: Demo takes 1 text"),
        ("norms", ("--group", "verbs"), "--group verbs: known are cls, sep"),
        ("norms", ("--rows", "2", "--token", "zebra", "--group", "punctuation"), "the rows have no token of the group"),
        ("attention", ("--set", "seed=3"), "seed would change nothing here"),
    ],
)
def test_bad_input(analyze, workspace, name, more, message):
    code, _, err = analyze(name, *more)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_models_that_do_not_belong_together(analyze, workspace, tmp_path):
    config = BertConfig.from_pretrained(workspace / "teacher", num_hidden_layers=1)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "shallow")
    AutoTokenizer.from_pretrained(workspace / "teacher").save_pretrained(tmp_path / "shallow")
    code, _, err = analyze("attention", student=tmp_path / "shallow")
    assert code == 2 and "shallow: has 1 layers of" in err and "only models of one shape" in err


def test_broken_models_and_missing_data(cli, analyze, workspace, tmp_path):
    code, _, err = analyze("layers", student=tmp_path / "nothing")
    assert code == 2 and "nothing: not a local folder to write into; give --output" in err
    shutil.copytree(workspace / "run", tmp_path / "broken", ignore=shutil.ignore_patterns("analysis"))
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    next(iter(weights.values()))[0] = torch.nan
    save_file(weights, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    code, _, err = analyze("layers", student=tmp_path / "broken")
    assert code == 2 and "holds NaN" in err
    assert not (tmp_path / "broken" / "analysis").exists()
    models = ("--teacher", workspace / "teacher", "--student", workspace / "run")
    code, _, err = cli("analyze", "layers", *models, "--task", "demo", "--data", tmp_path / "none")
    assert code == 2 and "none" in err
    (tmp_path / "file").write_text("")
    code, _, err = analyze("layers", "--output", tmp_path / "file")
    assert code == 2 and "file: this is a file" in err


def test_a_new_run_drops_the_analyses_of_the_old_one(cli, workspace, tmp_path):
    shutil.copytree(workspace / "run", tmp_path / "run")
    (tmp_path / "run" / "analysis" / "layers").mkdir(parents=True, exist_ok=True)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert cli(*train_arguments(workspace, tmp_path / "run", *STEPS, "--overwrite"))[0] == 0
    assert not (tmp_path / "run" / "analysis").exists()
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
