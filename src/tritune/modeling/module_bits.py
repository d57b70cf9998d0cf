"""How many bits every module of a model computes with."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class ModuleBits:
    """How a module computes: `None` bits are float.

    Attributes:
        name: of the module; a `*` stands for the layers where all have the same bits, else their numbers do.
        count: modules of that name.
        parameters: of their weights together.
        weight_bits, activation_bits: of weights and inputs.
    """

    name: str
    count: int
    parameters: int
    weight_bits: int | None
    activation_bits: int | None


def bits_of_modules(model: nn.Module) -> list[ModuleBits]:
    """Every Linear, Embedding and convolution of `model` with its bits, those of identical layers in one row."""
    groups: dict[tuple, dict[str, int]] = {}  # module to parameters, by pattern and bits
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            quantizers = (getattr(module, "weight_quantizer", None), getattr(module, "input_quantizer", None))
            pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
            key = (pattern, *(quantizer and quantizer.bits for quantizer in quantizers))
            groups.setdefault(key, {})[name] = math.prod(getattr(module, "latent_shape", module.weight.shape))
    patterns = [pattern for pattern, *_ in groups]
    return [
        ModuleBits(
            pattern if patterns.count(pattern) == 1 else _numbered(sizes), len(sizes), sum(sizes.values()), *bits
        )
        for (pattern, *bits), sizes in groups.items()
    ]


def _numbered(names: Iterable[str]) -> str:
    """Names that differ in their numbers as one name with all of these.

    >>> _numbered(["layer.1.query", "layer.2.query"])
    'layer.1,2.query'
    """
    return ".".join(",".join(dict.fromkeys(parts)) for parts in zip(*(name.split(".") for name in names), strict=True))
