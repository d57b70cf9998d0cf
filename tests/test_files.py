"""Files are replaced whole, and others may read what the umask lets them: `open()` and `mkdir()` are the oracle."""

import copy
import gc
import inspect
import os
import pickle
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, Trainer, TrainingArguments

import tritune
from families import FAMILIES
from tritune import Quantization
from tritune.checkpoints.files import replace_file, replace_folder, usual_modes
from tritune.deploy.export.dense import export_dense
from tritune.training.head_trainer import HeadTrainer
from tritune.training.study import DATABASE, open_storage
from workspace import train_arguments, write_workspace

LEARNED = Quantization(weight_bits=4, weight_quantizer="lsq", activation_quantizer="lsq")


every_umask = pytest.mark.parametrize("umask", [0o022, 0o027, 0o002], ids=["022", "027", "002"], indirect=True)


@pytest.fixture
def umask(request, monkeypatch):
    """One that is in force during the test, in which nobody else sets it."""
    mask = getattr(request, "param", 0o027)
    before = os.umask(mask)
    with monkeypatch.context() as patch:
        patch.delattr(os, "umask")
        yield mask
    os.umask(before)


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o7777)


def unusual(folder: Path, umask: int) -> dict[str, str]:
    """Whatever lies in `folder` with another mode than `open()` or `mkdir()` would have given it."""
    paths = [folder, *folder.rglob("*")]
    usual = {path: oct((0o777 if path.is_dir() else 0o666) & ~umask) for path in paths}
    return {str(path.relative_to(folder)): mode(path) for path in paths if mode(path) != usual[path]}


def bert(seed: int = 0, quantization: Quantization | None = None) -> PreTrainedModel:
    return tritune.prepare(FAMILIES["bert"].build(seed), quantization).eval()


def rows() -> list[dict[str, torch.Tensor]]:
    batch = FAMILIES["bert"].batch()
    return [{name: value[row] for name, value in batch.items()} | {"labels": torch.tensor(0)} for row in range(3)]


def arguments(folder: Path) -> TrainingArguments:
    return TrainingArguments(folder, max_steps=1, save_steps=1, report_to="none", disable_tqdm=True)


# -- one file, one folder


@every_umask
def test_a_new_file_and_a_new_folder(umask, tmp_path):
    with replace_file(tmp_path / "a.txt") as partial:
        partial.write_text("new")
    with replace_folder(tmp_path / "one" / "two") as partial:
        (partial / "inner").mkdir()
        save_file({"a": torch.zeros(1)}, partial / "model.safetensors")
        (partial / "inner" / "b.txt").touch()
    tmp_path.chmod(0o777 & ~umask)
    assert unusual(tmp_path, umask) == {}
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(
        ["a.txt", "one", "two", "inner", "b.txt", "model.safetensors"]
    )


@every_umask
def test_what_is_replaced_keeps_its_mode(umask, tmp_path):
    for number, own in enumerate((0o600, 0o640, 0o666, 0o444)):
        path, folder = tmp_path / f"{number}.txt", tmp_path / str(number)
        path.write_text("old")
        path.chmod(own)
        with replace_file(path) as partial:
            partial.write_text("new")
            assert partial.stat().st_mode & 0o7777 & ~own & ~0o600 == 0, "nobody reads it meanwhile who may not later"
        assert (path.read_text(), mode(path)) == ("new", oct(own))
        folder.mkdir()
        (folder / "model.safetensors").touch()
        (folder / "model.safetensors").chmod(own)
        (folder / "gone").touch()
        folder.chmod(0o750)
        with replace_folder(folder) as partial:
            assert mode(partial) == "0o700"
            save_file({"a": torch.zeros(1)}, partial / "model.safetensors")
            (partial / "new").touch()
        found = {path.name: mode(path) for path in folder.iterdir()}
        assert found == {"model.safetensors": oct(own), "new": oct(0o666 & ~umask)} and mode(folder) == "0o750"


def test_an_error_leaves_everything_as_it_was(tmp_path):
    path, folder = tmp_path / "a.txt", tmp_path / "folder"
    path.write_text("old")
    folder.mkdir()
    (folder / "kept").touch()
    path.chmod(0o640)
    folder.chmod(0o750)
    for replace in (replace_file, replace_folder):
        target = path if replace is replace_file else folder
        with pytest.raises(ZeroDivisionError), replace(target) as partial:
            (partial if replace is replace_file else partial / "kept").write_text("new")
            raise ZeroDivisionError
    assert sorted(tmp_path.iterdir()) == [path, folder] and path.read_text() == "old"
    assert (folder / "kept").read_text() == "" and (mode(path), mode(folder)) == ("0o640", "0o750")


def test_modes_are_mended_after_an_error_too_and_only_where_they_are_not_usual(tmp_path):
    folder = tmp_path / "new"
    with pytest.raises(ZeroDivisionError), usual_modes(folder):
        folder.mkdir()
        save_file({"a": torch.zeros(1)}, folder / "a.safetensors")
        raise ZeroDivisionError
    (folder / "other.safetensors").touch()
    (folder / "other.safetensors").chmod(0o640)
    (folder / "probe").touch()
    with usual_modes(folder):
        save_file({"a": torch.zeros(1)}, folder / "b.safetensors")
    usual = mode(folder / "probe")
    assert {path.name: mode(path) for path in folder.iterdir()} == {
        **dict.fromkeys(("a.safetensors", "b.safetensors", "probe"), usual),
        "other.safetensors": "0o640",
    }
    with usual_modes(tmp_path / "never made"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


# -- models that a user saves


@pytest.mark.parametrize("kind", ["QAT", "packed", "loaded QAT", "loaded packed", "learned"])
@pytest.mark.parametrize("size", ["50GB", "3KB"], ids=["one file", "shards"])
def test_a_saved_model(kind, size, umask, tmp_path):
    model = bert(quantization=LEARNED if kind == "learned" else None)
    if "packed" in kind:
        tritune.convert(model)
    if "loaded" in kind:
        model.save_pretrained(tmp_path / "first")
        model = tritune.load(tmp_path / "first")
    folder = tmp_path / "saved"
    model.save_pretrained(folder, max_shard_size=size)
    shards = sorted(folder.glob("*.safetensors"))
    assert unusual(folder, umask) == {} and (len(shards) > 1) == (size == "3KB")
    assert not list(folder.glob(".*"))
    for number, path in enumerate(shards):
        path.chmod((0o600, 0o664)[number % 2])
    model.save_pretrained(save_directory=folder, max_shard_size=size)
    assert [mode(path) for path in shards] == [("0o600", "0o664")[number % 2] for number in range(len(shards))]
    tritune.load(folder)


def test_a_model_that_nobody_holds(tmp_path):
    tritune.prepare(FAMILIES["bert"].build(3)).save_pretrained(tmp_path / "saved")
    assert mode(tmp_path / "saved" / "model.safetensors") == mode(tmp_path / "saved" / "config.json")
    expected = bert(3).state_dict()
    assert all(
        torch.equal(expected[name], tensor) for name, tensor in tritune.load(tmp_path / "saved").state_dict().items()
    )
    tritune.load(tmp_path / "saved").save_pretrained(tmp_path / "again")
    for path in (tmp_path / "saved").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("packed", [False, True], ids=["QAT", "packed"])
@torch.no_grad()
def test_the_copy_saves_the_copy(copied, packed, tmp_path):
    model = bert()
    if packed:
        tritune.convert(model)
    twin, other = copied(model), copied(copied(model))
    twin.classifier.bias.fill_(7)
    other.config.id2label = {0: "x", 1: "y", 2: "z"}
    other.classifier.bias = torch.nn.Parameter(torch.full((3,), 8.0))
    for name, value in (("model", model), ("twin", twin), ("other", other)):
        value.save_pretrained(tmp_path / name)
    found = {
        name: load_file(tmp_path / name / "model.safetensors")["classifier.bias"] for name in ("model", "twin", "other")
    }
    assert torch.equal(found["model"], model.classifier.bias)
    assert found["twin"].tolist() == [7.0] * 3 and found["other"].tolist() == [8.0] * 3
    assert tritune.load(tmp_path / "other").config.id2label[2] == "z"
    for name in found:
        assert mode(tmp_path / name / "model.safetensors") == mode(tmp_path / name / "config.json")


def test_a_config_that_the_model_was_given_since_is_saved(tmp_path):
    model = tritune.convert(bert())
    model.config = copy.deepcopy(model.config)
    model.config.id2label = {0: "x", 1: "y", 2: "z"}
    model.save_pretrained(tmp_path)
    assert tritune.load(tmp_path).config.id2label == {0: "x", 1: "y", 2: "z"}


def test_a_model_is_gone_with_its_last_reference():
    gc.collect()
    gc.disable()
    try:
        for packed in (False, True):
            model = bert()
            if packed:
                tritune.convert(model)
            gone = weakref.ref(next(model.parameters()))
            del model
            assert gone() is None
    finally:
        gc.enable()


def test_it_takes_what_transformers_takes(tmp_path, monkeypatch):
    model, calls = tritune.convert(bert()), []
    assert inspect.signature(model.save_pretrained) == inspect.signature(FAMILIES["bert"].build().save_pretrained)
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda *args, **kwargs: calls.append((args, kwargs)))
    model.save_pretrained(str(tmp_path), False, push_to_hub=True, repo_id="me/mine", token="t", variant="fp16")
    expected = {"push_to_hub": True, "repo_id": "me/mine", "token": "t", "variant": "fp16"}
    assert calls == [((model, str(tmp_path), False), expected)]


# -- what tritune saves


@pytest.mark.parametrize("kind", ["float", "QAT"])
def test_checkpoints(kind, umask, tmp_path):
    model = FAMILIES["bert"].build() if kind == "float" else bert()
    trainer = HeadTrainer if kind == "float" else Trainer
    trainer(model=model, args=arguments(tmp_path / "run"), train_dataset=rows()).train()
    assert (tmp_path / "run" / "checkpoint-1" / "model.safetensors").is_file()
    assert unusual(tmp_path / "run", umask) == {}


def test_a_dense_export(umask, tmp_path):
    export_dense(bert(), tmp_path / "dense")
    assert unusual(tmp_path / "dense", umask) == {}


@pytest.mark.parametrize("umask", [0o002], indirect=True)
def test_the_database_of_a_sweep(umask, tmp_path):
    open_storage(None, tmp_path)
    assert mode(tmp_path / DATABASE) == oct(0o666 & ~umask)


def test_the_commands(cli, tmp_path):
    """A teacher, a student with its checkpoints and teacher cache, and every folder that is made from them."""
    before = os.umask(0o027)
    try:
        out = tmp_path / "out"
        workspace = write_workspace(out)
        steps = ("max_steps=2", "step_one_steps=1", "save_steps=1", "eval_steps=1")
        train = [word for step in steps for word in ("--set", step)]
        run, teacher = out / "run", out / "teacher"
        for line in (
            train_arguments(workspace, run, *train),
            ("convert", run, "--output", out / "packed"),
            ("convert", run, "--output", out / "packed", "--overwrite"),
            ("export", run, "--format", "dense", "--output", out / "dense"),
            ("shrink", teacher, "--layers", "0,2", "--output", out / "shrunk"),
            ("report", run, "--output", out / "report.html"),
        ):
            code, _, err = cli(*line)
            assert code == 0, err
    finally:
        os.umask(before)
    models = sorted(path.parent.relative_to(out).as_posix() for path in out.rglob("model.safetensors"))
    assert models == ["base", "dense", "packed", "run", "run/best", "shrunk", "teacher"]
    assert unusual(out, 0o027) == {}
