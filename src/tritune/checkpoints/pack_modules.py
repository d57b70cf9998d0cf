"""Module swap: quantized modules give way to packed twins."""

from torch import nn

from ..errors import TrituneError
from ..modeling.layers import QuantConv2d, QuantEmbedding, QuantLinear
from ..quant import QUANTIZERS
from .packed import PackedConv2d, PackedEmbedding, PackedLinear

_PACKED = {QuantLinear: PackedLinear, QuantEmbedding: PackedEmbedding, QuantConv2d: PackedConv2d}


def pack_modules(model: nn.Module) -> None:
    """Pack every weight of `model` that has a quantizer, in place; on the meta device, leave room for packed weights.

    Raises:
        TrituneError: a weight's quantizer has more codes than its bits hold or an offset, or a weight is shared with a
            module that would stay float; nothing is changed then.
    """
    modules = {
        name: module
        for name, module in model.named_modules()
        if type(module) in _PACKED and module.weight_quantizer is not None
    }
    for name, module in modules.items():
        if not module.weight_quantizer.packable:
            kind = type(module.weight_quantizer)
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
    for name, module in modules.items():
        model.set_submodule(name, _PACKED[type(module)].from_quantized(module))
        if isinstance(module, nn.Embedding):
            _move_behind_its_siblings(model, name)


def _move_behind_its_siblings(model: nn.Module, name: str) -> None:
    """Others take a model's dtype from its first parameter, and bytes are no dtype to compute in."""
    path, _, own = name.rpartition(".")
    parent = model.get_submodule(path)
    if not isinstance(parent, nn.Sequential | nn.ModuleList):
        parent._modules[own] = parent._modules.pop(own)


def packed_modules(model: nn.Module) -> dict[str, PackedLinear | PackedEmbedding | PackedConv2d]:
    """The packed modules of `model` by name."""
    kinds = tuple(_PACKED.values())
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
