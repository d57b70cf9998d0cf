"""Readers of the golden values: outputs of the published implementation.

Sizes, numbers of layers, cases and batches are read off the keys, so any set of files in the same format will do.
"""

import functools
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

from tritune import LayerTrace, ModelTrace, Site

FOLDER = Path(os.environ.get("TRITUNE_GOLDEN", Path(__file__).parents[2] / "shared" / "golden"))
# Where the numbers are compared; tests/test_gpu.py runs test_golden.py again on the accelerator.
DEVICE = os.environ.get("TRITUNE_DEVICE", "cpu")
ABSENT = f"no golden values in {FOLDER}; set TRITUNE_GOLDEN"

SITES = {"none": None, "map": Site.MAP, "context": Site.CONTEXT, "output": Site.PROJECTION}
LAYER_FIELDS = ("attention_scores", "attention_probs", "context", "attention_projection", "attention_block_output")
BATCH_KEYS = ("input_ids", "attention_mask", "token_type_ids")


@functools.cache
def read(name: str) -> dict[str, torch.Tensor]:
    return load_file(FOLDER / f"{name}.safetensors", device=DEVICE)


def cases(name: str, pattern: str) -> list:
    """What group 1 of `pattern` matches among the keys of a file; one skipped case where the file is absent."""
    if not (FOLDER / f"{name}.safetensors").is_file():
        return [pytest.param(None, marks=pytest.mark.skip(ABSENT))]
    found = dict.fromkeys(match[1] for key in read(name) if (match := re.fullmatch(pattern, key)))
    assert found, f"no key of {name} matches {pattern}"
    return list(found)


def subset(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def tiny_bert(prefix: str, file: str = "tiny_bert") -> BertForSequenceClassification:
    config = BertConfig(**json.loads((FOLDER / "tiny_bert_config.json").read_text()))
    model = BertForSequenceClassification(config)
    model.load_state_dict(subset(read(file), prefix))
    return model.to(DEVICE)


def batch(file: str = "tiny_bert", prefix: str = "") -> dict[str, torch.Tensor]:
    return {key: read(file)[prefix + key] for key in BATCH_KEYS}


def trace(prefix: str) -> ModelTrace:
    """The golden tensors of one forward pass, as the trace that it would have left."""
    tensors = subset(read("tiny_bert"), f"{prefix}.")
    masked = batch()["attention_mask"][:, None, None, :] == 0

    def series(name: str) -> list[torch.Tensor]:
        found = {key: value for key, value in tensors.items() if re.fullmatch(rf"{name}\.\d+", key)}
        return [found[f"{name}.{i}"] for i in range(len(found))]

    columns = zip(*(series(name) for name in LAYER_FIELDS), strict=True)
    layers = [LayerTrace(**dict(zip(LAYER_FIELDS, column, strict=True)), masked=masked) for column in columns]
    return ModelTrace(layers, series("hidden_states"))
