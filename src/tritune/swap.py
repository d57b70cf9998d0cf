"""Module swap: float modules give way to quantized twins, and quantized ones to packed twins."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from .anatomy import Anatomy
from .errors import TrituneError
from .instrument import instrument_of
from .layers import QuantEmbedding, QuantLinear, RowLinear
from .packed import PackedEmbedding, PackedLinear
from .quant import Granularity
from .quantization import Quantization

_PACKED = {QuantLinear: PackedLinear, QuantEmbedding: PackedEmbedding}


def swap(model: PreTrainedModel, quantization: Quantization) -> None:
    """Quantize the parts of `model` that `quantization` names, in place.

    Raises:
        TrituneError: the model holds quantized modules already, or `quantization.layers` does not fit it.
    """
    if any(isinstance(module, (*_PACKED, *_PACKED.values())) for module in model.modules()):
        raise TrituneError(f"this {type(model).__name__} is prepared already; start from the float model")
    instrument = instrument_of(model)
    layers = _layers(instrument.anatomy, quantization)
    for part, names in instrument.anatomy.parts(layers).items():
        if getattr(quantization, part):
            for name in names:
                model.set_submodule(name, _twin(model.get_submodule(name), quantization))
    activations = quantization.activations()
    if activations is not None and activations.granularity is Granularity.TOKEN and not quantization.classifier:
        for name in instrument.anatomy.classifier:
            model.set_submodule(name, RowLinear.from_float(model.get_submodule(name)))
    for state in instrument.states:
        if state.layers[0] in layers:
            for operand, quantizer in quantization.products().items():
                setattr(state, operand, quantizer)


def pack_modules(model: nn.Module) -> None:
    """Pack every weight of `model` that has a quantizer, in place; on the meta device, leave room for packed weights.

    Raises:
        TrituneError: a weight is shared with a module that would stay float; nothing is changed then.
    """
    modules = {
        name: module
        for name, module in model.named_modules()
        if type(module) in _PACKED and module.weight_quantizer is not None
    }
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


def packed_modules(model: nn.Module) -> dict[str, PackedLinear | PackedEmbedding]:
    """The packed modules of `model` by name."""
    kinds = tuple(_PACKED.values())
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


@dataclass(frozen=True)
class ModuleBits:
    """How a module computes: `None` bits are float.

    Attributes:
        name: of the module; layers that look alike are told apart by a `*`.
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
    """Every Linear and Embedding of `model` with its bits, those of alike layers in one row."""
    groups: dict[tuple, list[int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            quantizers = (getattr(module, "weight_quantizer", None), getattr(module, "input_quantizer", None))
            pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
            key = (pattern, *(quantizer and quantizer.bits for quantizer in quantizers))
            columns = module.in_features if isinstance(module, nn.Linear) else module.embedding_dim
            groups.setdefault(key, []).append(module.weight.shape[0] * columns)
    return [ModuleBits(key[0], len(sizes), sum(sizes), *key[1:]) for key, sizes in groups.items()]


def _layers(anatomy: Anatomy, quantization: Quantization) -> Iterable[int]:
    every = range(len(anatomy.sites))
    if quantization.layers is None:
        return every
    if anatomy.shares_weights:
        raise TrituneError("layers: a layer range cannot be quantized where layers share their weights; leave it null")
    if outside := [layer for layer in quantization.layers if layer not in every]:
        raise TrituneError(f"layers: {outside} are outside this model's layers 0 to {len(every) - 1}")
    return quantization.layers


def _twin(module: nn.Module, quantization: Quantization) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return QuantEmbedding.from_float(module, quantization.weights(quantization.embedding_granularity))
    return QuantLinear.from_float(
        module, quantization.weights(quantization.weight_granularity), quantization.activations()
    )
