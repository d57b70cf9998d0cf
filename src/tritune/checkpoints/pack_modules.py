"""Module swap: quantized modules give way to packed twins."""

from torch import nn

from ..errors import TrituneError
from ..modeling.layers import FakeQuantized, QuantConv2d, QuantEmbedding, QuantLinear
from ..quant import QUANTIZERS
from .packed import Packed, PackedConv2d, PackedEmbedding, PackedLinear

_PACKED: dict[type[FakeQuantized], type[Packed]] = {
    QuantLinear: PackedLinear,
    QuantEmbedding: PackedEmbedding,
    QuantConv2d: PackedConv2d,
}


def pack_modules(model: nn.Module) -> None:
    """Pack every weight of `model` that has a quantizer, in place; on the meta device, leave room for packed weights.

    Raises:
        TrituneError: a weight's quantizer has more codes than its bits hold or an offset, or a weight is shared with a
            module that would stay float; nothing is changed then.
    """
    modules: dict[str, FakeQuantized] = {}
    for name, module in model.named_modules():
        if isinstance(module, FakeQuantized) and (quantizer := module.weight_quantizer) is not None:
            modules[name] = module
            if not quantizer.packable:
                kind = type(quantizer)
                named = next((own for own, listed in QUANTIZERS.items() if listed is kind), kind.__name__)
                raise TrituneError(f"{name}: weights of the quantizer {named} cannot be packed; train with another one")
    packed = {id(module) for module in modules.values()}
    weights = {id(module.weight): name for name, module in modules.items()}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in weights and id(module) not in packed:
                raise TrituneError(
                    f"{weights[id(parameter)]} shares its weight with {name}, which stays float: it cannot be packed"
                )
    for name, quantized in modules.items():
        model.set_submodule(name, _PACKED[type(quantized)].from_quantized(quantized))
        if isinstance(quantized, nn.Embedding):
            _move_behind_its_siblings(model, name)


def _move_behind_its_siblings(model: nn.Module, name: str) -> None:
    """Others take a model's dtype from its first parameter, and bytes are no dtype to compute in."""
    path, _, own = name.rpartition(".")
    parent = model.get_submodule(path)
    if not isinstance(parent, nn.Sequential | nn.ModuleList):
        parent._modules[own] = parent._modules.pop(own)


def packed_modules(model: nn.Module) -> dict[str, Packed]:
    """The packed modules of `model` by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Packed)}
