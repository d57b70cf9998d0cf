"""A model of the same class, built anew from a config in which one number is another."""

from collections.abc import Iterator

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import TrituneError


def check_float(model: PreTrainedModel) -> None:
    """Raise TrituneError for a quantized model: parts of float models alone can be left out."""
    if getattr(model.config, "quantization_config", None) is not None:
        raise TrituneError(f"this {type(model).__name__} is quantized; shrink the float model, then train")


def build_like(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """A model of the class of `model`, in its dtype and on its device, with weights that are to be replaced."""
    with torch.random.fork_rng(devices=[]):  # first weights are drawn only to be replaced
        small = type(model)(config)
    small.to(dtype=model.dtype, device=model.device)  # type: ignore[call-arg]  # transformers wraps it without self
    return small


def owners_of(config: PreTrainedConfig) -> dict[str, PreTrainedConfig]:
    """A config under the name "", and the parts it has under theirs."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    return {"": config, **{name: part for name, part in parts.items() if part is not None}}


def counting_keys(config: PreTrainedConfig, usual: str, count: int) -> Iterator[tuple[str, str]]:
    """Keys that may set a number of things, each with the part of the config that it stands in.

    Args:
        config: of a model that has `count` of them.
        usual: how transformers calls the key in most families; it comes first.
        count: the number.
    """
    keys = [
        (part, key, key == owner.attribute_map.get(usual, usual))
        for part, owner in owners_of(config).items()
        for key, value in vars(owner).items()
        if type(value) is int and value == count
    ]
    for part, key, _ in sorted(keys, key=lambda row: not row[2]):
        yield part, key
