"""Sizes: what a model takes once its codes are packed, before they are; and where a packed model's bytes are."""

import math
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from ..modeling.instrument import instrument_of
from ..modeling.layers import FakeQuantized
from ..quant import Calibrated, Granularity, Quantizer
from .packed import Packed

_SCALE_BYTES = 4


def size_bytes(model: nn.Module) -> int:
    """Bytes of all parameters: codes at their bit width and one float32 scale per group, the rest as it is stored.

    Parameters that modules share count once, and the learned scale of a weight as its scale. File headers and buffers
    do not count, but for the scales of a packed model: its size is that of its tensors.

    >>> size_bytes(nn.Linear(8, 4))
    144
    """
    quantizers = {
        id(module.weight): module.weight_quantizer for module in model.modules() if isinstance(module, FakeQuantized)
    }
    learned = {
        id(p) for quantizer in quantizers.values() if isinstance(quantizer, Calibrated) for p in quantizer.parameters()
    }
    packed = [module for module in model.modules() if isinstance(module, Packed)]
    beside = [module.weight_scale for module in packed]
    beside += [module.packed for module in packed if module.packed is not module.weight]
    parameters = [parameter for parameter in model.parameters() if id(parameter) not in learned]
    return sum(_parameter_bytes(p, quantizers.get(id(p))) for p in parameters) + sum(tensor.nbytes for tensor in beside)


@dataclass(frozen=True)
class PartSize:
    """The size of a part of a packed model.

    Attributes:
        part: "embeddings", "encoder", "pooler", "classifier": the packed weights with their scales; "float rest":
            biases, norms, position embeddings and whatever else was not quantized.
        parameters: weights of it, packed or not.
        float_bytes: what these take in float32.
        size_bytes: what they take as they are.
    """

    part: str
    parameters: int
    float_bytes: int
    size_bytes: int


def sizes_by_part(model: PreTrainedModel) -> list[PartSize]:
    """Where the bytes of a packed model are, part by part; parts without a packed weight are in the float rest."""
    # By part: parameters and bytes of every tensor.
    found: dict[str, list[tuple[int, int]]] = {
        part: [] for part in ("embeddings", "encoder", "pooler", "classifier", "float rest")
    }
    for part, names in instrument_of(model).anatomy.parts().items():
        part = "embeddings" if part == "patch_embedding" else part if part in found else "encoder"
        for module in map(model.get_submodule, names):
            if isinstance(module, Packed):
                found[part].append((math.prod(module.latent_shape), module.packed.nbytes + module.weight_scale.nbytes))
    found["float rest"] = [(p.numel(), p.nbytes) for p in model.parameters() if p.is_floating_point()]
    sums = {part: map(sum, zip(*tensors, strict=True)) for part, tensors in found.items() if tensors}
    return [PartSize(part, count, 4 * count, size) for part, (count, size) in sums.items()]


def _parameter_bytes(parameter: nn.Parameter, quantizer: Quantizer | None) -> int:
    if quantizer is None:
        return parameter.numel() * parameter.element_size()
    scales = 1 if quantizer.granularity is Granularity.TENSOR else parameter.shape[0]
    numbers = 2 if quantizer.has_offset else 1
    return math.ceil(parameter.numel() * quantizer.code_bits / 8) + scales * numbers * _SCALE_BYTES
