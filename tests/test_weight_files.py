"""Teachers as people have them: older files, and weights of compiled or wrapped models, are read; code never runs."""

import json
import os
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import tritune
from families import FAMILIES
from test_integrity import tiny_model
from tritune import TrituneError
from tritune.checkpoints.load import load_float, load_pretrained

LOADERS = {
    "auto": lambda folder: load_pretrained(AutoModelForSequenceClassification, folder),
    "whole": load_float,
}


@pytest.fixture
def teacher(tmp_path):
    FAMILIES["bert"].build().save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def rewritten(folder, prefix="", as_pickle=False, parts=1):
    """The folder with its weights under other names or in another file, and the weights."""
    weights = load_file(folder / "model.safetensors")
    named = {prefix + name: tensor for name, tensor in weights.items()}
    os.remove(folder / "model.safetensors")
    if not as_pickle:
        save_file(named, folder / "model.safetensors", {"format": "pt"})
    elif parts == 1:
        torch.save(named, folder / "pytorch_model.bin")
    else:
        names = {name: f"pytorch_model-{1 + i % parts:05}-of-{parts:05}.bin" for i, name in enumerate(named)}
        for file in set(names.values()):
            torch.save({name: named[name] for name in named if names[name] == file}, folder / file)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return weights


def has(model, weights):
    state = model.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(value, weights[name]) for name, value in state.items())


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("parts", [1, 2])
def test_older_files(teacher, loader, parts):
    weights = rewritten(teacher, as_pickle=True, parts=parts)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = LOADERS[loader](teacher)
    assert has(model, weights)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("as_pickle", [False, True])
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_names_of_wrapped_models(teacher, loader, as_pickle, prefix):
    weights = rewritten(teacher, prefix, as_pickle)
    with pytest.warns(UserWarning, match=f"teacher: {prefix} in front of the names of all weights was taken off"):
        model = LOADERS[loader](teacher)
    assert has(model, weights)


def test_names_that_are_wrapped_in_part_are_refused(teacher):
    weights = load_file(teacher / "model.safetensors")
    odd = {("module." if "layer.0" in name else "_orig_mod.") + name: tensor for name, tensor in weights.items()}
    save_file(odd, teacher / "model.safetensors", {"format": "pt"})
    with pytest.raises(TrituneError, match="the weights are not this model's"):
        LOADERS["auto"](teacher)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("what", ["code", "a module", "damage", "no weights"])
@pytest.mark.parametrize("loader", LOADERS)
def test_nothing_but_plain_tensors(teacher, tmp_path, loader, what):
    weights = rewritten(teacher, as_pickle=True)
    file, message = teacher / "pytorch_model.bin", "pytorch_model.bin holds more than plain tensors"
    if what == "code":
        torch.save(weights | {"trap": Trap(tmp_path / "sprung")}, file)
    elif what == "a module":
        torch.save(FAMILIES["bert"].build(), file)
    elif what == "damage":
        file.write_bytes(file.read_bytes()[:-1000])
        message = "not a model that can be loaded"
    else:
        file.unlink()
        message = "no model.safetensors; save weights in other formats as safetensors first"
    with pytest.raises(TrituneError, match=message) as raised:
        LOADERS[loader](teacher)
    assert "\n" not in str(raised.value) and not (tmp_path / "sprung").exists()


def test_quantized_models_are_read_from_safetensors_only(tmp_path):
    for name, model in (("qat", tiny_model()), ("packed", tritune.convert(tiny_model()))):
        model.save_pretrained(tmp_path / name)
        torch.save(load_file(tmp_path / name / "model.safetensors"), tmp_path / name / "pytorch_model.bin")
        os.remove(tmp_path / name / "model.safetensors")
        with pytest.raises(TrituneError, match=r"no model\.safetensors"):
            tritune.load(tmp_path / name)


def test_safetensors_come_first(teacher):
    weights = load_file(teacher / "model.safetensors")
    torch.save({name: tensor + 1 for name, tensor in weights.items()}, teacher / "pytorch_model.bin")
    assert torch.equal(LOADERS["auto"](teacher).classifier.weight, weights["classifier.weight"])
