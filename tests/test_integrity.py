"""A damaged file is refused before any weight is used: every byte of a tiny one, and what hypothesis thinks of."""

import json
import shutil
import struct
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

import tritune
from tritune import Quantization, TrituneError
from tritune.checkpoints.integrity import tensor_checksum
from tritune.checkpoints.load import load_pretrained
from tritune.checkpoints.plugin import verify
from tritune.engine.integrity import (
    LARGEST_HEADER_BYTES,
    config_checksum,
    read_packed,
    verify_config,
    verify_tensors,
)

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def tiny_model() -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=12,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=4,
        max_position_embeddings=4,
        num_labels=2,
    )
    torch.manual_seed(0)
    return tritune.prepare(BertForSequenceClassification(config), Quantization())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tritune.convert(tiny_model()).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def refused(check, *arguments) -> bool:
    """Whether `check` raises; `verify` is what `from_pretrained` calls first, and is made of the others."""
    try:
        check(*arguments)
    except TrituneError as error:
        assert "\n" not in str(error)
        return True
    return False


def test_the_written_files_pass(tiny):
    verify([tiny / WEIGHTS])
    section = json.loads((tiny / CONFIG).read_text())["quantization_config"]
    tensors = load_file(tiny / WEIGHTS)
    assert section["format_version"] == 1 and section["stage"] == "packed"
    assert section["checksums"] == {name: tensor_checksum(tensor) for name, tensor in tensors.items()}


def test_every_flipped_byte_of_the_weights_is_refused(copy):
    path, checksums = copy / WEIGHTS, verify_config(copy / CONFIG)
    original = bytearray(path.read_bytes())
    header = json.loads(original[8 : 8 + struct.unpack("<Q", original[:8])[0]])
    accepted = []
    for position in range(len(original)):
        damaged = bytearray(original)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        if not refused(verify_tensors, [path], checksums):
            accepted.append(position)
    # Nothing but a blank of the header may become another blank.
    for position in accepted:
        changed = bytearray(original)
        changed[position] ^= 1 << (position % 8)
        assert json.loads(changed[8 : 8 + struct.unpack("<Q", changed[:8])[0]]) == header


# What of a BERT's config decides nothing, written out.
FREE = {"label2id", "transformers_version", "_name_or_path", "initializer_range"} | {
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
}


def deciding(config: dict) -> tuple:
    """What transformers makes of a config.json, without what decides nothing; keys of others are not in it."""
    section = config["quantization_config"]
    made = BertConfig.from_dict({key: value for key, value in config.items() if key != "quantization_config"}).to_dict()
    values = {key: made[key] for key in BertConfig().to_dict() if key not in FREE}
    return values | {"id2label": sorted(values["id2label"])}, section


def test_every_flipped_byte_of_the_config_is_refused(copy):
    path = copy / CONFIG
    original = bytearray(path.read_bytes())
    for position in range(len(original)):
        damaged = bytearray(original)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        if not refused(verify_config, path):
            assert deciding(json.loads(damaged)) == deciding(json.loads(original)), position


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_was_cut_swapped_or_overwritten_is_refused(tiny, tmp_path, data):
    shutil.copytree(tiny, tmp_path / "copy", dirs_exist_ok=True)
    path = tmp_path / "copy" / data.draw(st.sampled_from([WEIGHTS, CONFIG]))
    original = (tiny / path.name).read_bytes()
    start = data.draw(st.integers(0, len(original) - 1))
    end = data.draw(st.integers(start, len(original)))
    damaged = original[:start] + data.draw(st.binary(max_size=40)) + original[end:]
    path.write_bytes(damaged)
    if not refused(verify, [tmp_path / "copy" / WEIGHTS]):
        same = damaged == original or path.name == CONFIG
        assert same and (damaged == original or deciding(json.loads(damaged)) == deciding(json.loads(original)))


LOADERS = {
    "auto class": AutoModelForSequenceClassification.from_pretrained,
    "base class": AutoModel.from_pretrained,
    "load": tritune.load,
    "load_pretrained": partial(load_pretrained, AutoModelForSequenceClassification),
}


def overwrite(change):
    """Damage the weights' bytes."""

    def damage(folder: Path) -> None:
        path = folder / WEIGHTS
        path.write_bytes(change(path.read_bytes()))

    return damage


def resave(change):
    """Write other tensors into a well-formed file."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return damage


def rewrite(change, checksum: bool = True):
    """Change the config, with a right checksum or without."""

    def damage(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        change(config)
        if checksum:
            config["quantization_config"]["config_checksum"] = config_checksum(config)
        (folder / CONFIG).write_text(json.dumps(config))

    return damage


def forbidden_code(folder: Path) -> None:
    """A ternary 0b11, in files whose checksums are right."""
    tensors = load_file(folder / WEIGHTS)
    tensors["bert.pooler.dense.weight"][0, 0] |= 0b11
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    sums = {name: tensor_checksum(tensor) for name, tensor in tensors.items()}
    rewrite(lambda config: config["quantization_config"].update(checksums=sums))(folder)


def bad_scale(value: float):
    """A scale that is none, in files whose checksums are right."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        tensors["bert.pooler.dense.weight_scale"].fill_(value)
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
        sums = {name: tensor_checksum(tensor) for name, tensor in tensors.items()}
        rewrite(lambda config: config["quantization_config"].update(checksums=sums))(folder)

    return damage


def to_pickle(folder: Path) -> None:
    """The same weights, but in a pickle."""
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


SCALE = "bert.encoder.layer.0.output.dense.weight_scale"
DAMAGES = {
    "truncated": (overwrite(lambda data: data[:-1]), "damaged|truncated"),
    "empty": (overwrite(lambda data: b""), "truncated"),
    "half": (overwrite(lambda data: data[: len(data) // 2]), "damaged|truncated"),
    "longer": (overwrite(lambda data: data + b"\0"), "damaged"),
    "header beyond the file": (overwrite(lambda data: struct.pack("<Q", 2**63) + data[8:]), "truncated"),
    "oversized header": (
        overwrite(lambda data: struct.pack("<Q", LARGEST_HEADER_BYTES + 8) + b" " * (LARGEST_HEADER_BYTES + 99)),
        "too large",
    ),
    "not JSON": (overwrite(lambda data: data[:8] + b"\xff" + data[9:]), "damaged"),
    "last bit": (overwrite(lambda data: data[:-1] + bytes([data[-1] ^ 1])), "damaged"),
    "doubled scale": (resave(lambda tensors: tensors[SCALE].mul_(2)), "checksum differs"),
    "missing tensor": (resave(lambda tensors: tensors.pop(SCALE)), "missing"),
    "further tensor": (resave(lambda tensors: tensors.update(extra=torch.ones(1))), "does not list"),
    "0b11": (forbidden_code, "codes outside -1 to 1"),
    "scale of NaN": (bad_scale(float("nan")), "scale"),
    "negative scale": (bad_scale(-1.0), "scale"),
    "pickle": (to_pickle, "safetensors|model.safetensors"),
    "newer version": (
        rewrite(lambda config: config["quantization_config"].update(format_version=2)),
        "format_version 2",
    ),
    "no version": (rewrite(lambda config: config["quantization_config"].pop("format_version")), "format_version None"),
    "other bits": (rewrite(lambda config: config["quantization_config"].update(weight_bits=4)), "weight|shape|size"),
    "as QAT": (
        rewrite(lambda config: config["quantization_config"].update(stage="qat", format_version=None)),
        "shape|size",
    ),
    "edited config": (rewrite(lambda config: config.update(layer_norm_eps=1e-3), checksum=False), "checksum differs"),
    "another problem": (
        rewrite(lambda config: config.update(problem_type="multi_label_classification"), checksum=False),
        "checksum differs",
    ),
    "more labels": (
        rewrite(lambda config: config.update(id2label={"0": "a", "1": "b", "2": "c"}), checksum=False),
        "checksum differs",
    ),
    "another name of a key": (
        rewrite(lambda config: config.update(torch_dtype="float16"), checksum=False),
        "checksum differs",
    ),
    "a key that is missing": (rewrite(lambda config: config.pop("hidden_act"), checksum=False), "checksum differs"),
    "fewer keys covered": (
        rewrite(lambda config: config["quantization_config"]["config_keys"].remove("hidden_act"), checksum=False),
        "checksum differs",
    ),
    "no list of keys": (
        rewrite(lambda config: config["quantization_config"].pop("config_keys"), checksum=False),
        "checksum differs",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("loader", LOADERS)
def test_damage_is_refused_on_every_path(name, loader, copy):
    damage, message = DAMAGES[name]
    damage(copy)
    # What is wrong in spite of right checksums, transformers may refuse before we do, in words of its own.
    forged = name in ("as QAT", "other bits", "pickle")
    kind = Exception if forged and not loader.startswith("load") else TrituneError
    with pytest.raises(kind, match=message):
        LOADERS[loader](copy)


EDITS = {
    "names": {"id2label": {"0": "negative", "1": "positive"}, "label2id": {"negative": 0, "positive": 1}},
    "names alone": {"id2label": {"0": "negative", "1": "positive"}},
    "a key of another tool": {"my_tool": {"hidden_act": "relu", "list": [1, None]}, "license": "apache-2.0"},
    "versions": {"transformers_version": "99.0"},
    "what training reads": {"hidden_dropout_prob": 0.5, "classifier_dropout": 0.1, "initializer_range": 1.0},
}


@torch.no_grad()
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("loader", LOADERS)
def test_names_and_notes_may_be_edited(edit, loader, copy, tmp_path):
    ids = torch.tensor([[1, 2, 3]])
    before = LOADERS[loader](copy)(ids)[0]
    rewrite(lambda config: config.update(EDITS[edit]), checksum=False)(copy)
    verify([copy / WEIGHTS])
    model = LOADERS[loader](copy)
    assert torch.equal(model(ids)[0], before)
    if "names" in edit:
        assert model.config.id2label == {0: "negative", 1: "positive"}
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(LOADERS[loader](tmp_path / "again")(ids)[0], before)
    assert read_packed(copy).config[next(iter(EDITS[edit]))] == next(iter(EDITS[edit].values()))


def test_checkpoints_without_a_list_of_keys_are_covered_as_a_whole(copy):
    """As all were before there was one."""
    rewrite(lambda config: config["quantization_config"].pop("config_keys"))(copy)
    section = json.loads((copy / CONFIG).read_text())["quantization_config"]
    assert "config_keys" not in section and tritune.load(copy) is not None
    rewrite(lambda config: config.update(transformers_version="99.0"), checksum=False)(copy)
    with pytest.raises(TrituneError, match="checksum differs"):
        tritune.load(copy)


def test_the_keys_of_a_part_are_covered(tmp_path):
    """A config of several, as CLIP's."""
    section = {"checksums": {}, "config_keys": ["text_config"], "config_checksum": ""}
    config = {"text_config": {"hidden_act": "gelu", "attention_dropout": 0.0}, "quantization_config": section}
    known = config_checksum(config)
    config["text_config"]["attention_dropout"] = 0.5
    assert config_checksum(config) == known
    config["text_config"]["hidden_act"] = "relu"
    assert config_checksum(config) != known


def test_files_of_two_checkpoints_are_not_mixed(copy, tmp_path):
    other = tiny_model()
    with torch.no_grad():
        other.classifier.bias += 1
    tritune.convert(other).save_pretrained(tmp_path / "other")
    shutil.copyfile(tmp_path / "other" / WEIGHTS, copy / WEIGHTS)
    with pytest.raises(TrituneError, match="checksum differs"):
        tritune.load(copy)


def test_shards_are_verified_too(tmp_path):
    model = tritune.convert(tiny_model())
    model.save_pretrained(tmp_path, max_shard_size=150)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    loaded = tritune.load(tmp_path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    shards[1].write_bytes(shards[1].read_bytes()[:-1] + b"\x01")
    with pytest.raises(TrituneError, match=shards[1].name):
        tritune.load(tmp_path)
    shards[1].unlink()
    with pytest.raises(TrituneError):
        tritune.load(tmp_path)
