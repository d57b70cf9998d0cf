"""Module swap: float modules give way to quantized twins, and quantized ones to packed twins."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from transformers import PreTrainedModel

from .anatomy import Anatomy
from .errors import TrituneError, shown
from .instrument import instrument_of
from .layers import QuantConv2d, QuantEmbedding, QuantLinear, RowLinear
from .packed import PackedConv2d, PackedEmbedding, PackedLinear
from .quant import QUANTIZERS, Calibrated, Granularity, MovingMinMax, Quantizer
from .quantization import Quantization

_PACKED = {QuantLinear: PackedLinear, QuantEmbedding: PackedEmbedding, QuantConv2d: PackedConv2d}


def swap(model: PreTrainedModel, quantization: Quantization) -> None:
    """Quantize the parts of `model` that `quantization` names, in place.

    Raises:
        TrituneError: the model holds quantized modules already, or `quantization.layers`, `patch_embedding` or a
            pattern of `quantization.modules` does not fit it.
    """
    if any(isinstance(module, (*_PACKED, *_PACKED.values())) for module in model.modules()):
        raise TrituneError(f"this {type(model).__name__} is prepared already; start from the float model")
    instrument = instrument_of(model)
    layers = _layers(instrument.anatomy, quantization)
    parts = instrument.anatomy.parts(layers)
    if quantization.patch_embedding and not parts["patch_embedding"]:
        raise TrituneError(f"patch_embedding: this {type(model).__name__} has no convolution over patches")
    names = [name for part, names in parts.items() if getattr(quantization, part) for name in names]
    states = {instrument.anatomy.sites[s.layers[0]].attention: s for s in instrument.states if s.layers[0] in layers}
    own_names = [*names, *(states if quantization.attention_products else ())]
    _check_patterns(quantization, own_names)
    if instrument.anatomy.is_causal:
        _check_causal(quantization, own_names)
    fused = instrument.anatomy.fused_rows
    twins = {
        name: _twin(model.get_submodule(name), quantization.of_module(name), fused.get(name, ())) for name in names
    }
    for name, twin in twins.items():
        model.set_submodule(name, twin)
    for name in instrument.anatomy.classifier:
        activations = quantization.of_module(name).activations()
        if not quantization.classifier and activations and activations.granularity is Granularity.TOKEN:
            model.set_submodule(name, RowLinear.from_float(model.get_submodule(name)))
    for name, state in states.items():
        attention = model.get_submodule(name)
        site = instrument.anatomy.sites[state.layers[0]]
        features = site.fused_rows[0] if site.fused_rows else model.get_submodule(site.query).out_features
        for operand, quantizer in quantization.of_module(name).products(features, site.causal).items():
            setattr(state, operand, quantizer)
            if isinstance(quantizer, Calibrated):  # the attention module saves, moves and trains it
                attention.add_module(f"{operand}_quantizer", _beside(quantizer, model, attention.training))
    instrument.ranges = [module for module in model.modules() if isinstance(module, MovingMinMax)]


def quantizer_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What the quantizers of `model` learn or remember, by its names in the state dict."""
    return {
        f"{name}.{own}": tensor
        for name, module in model.named_modules()
        if isinstance(module, Calibrated)
        for own, tensor in module.state_dict(keep_vars=True).items()
    }


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
    """Every Linear, Embedding and convolution of `model` with its bits, those of alike layers in one row."""
    groups: dict[tuple, list[int]] = {}
    members: dict[tuple, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            quantizers = (getattr(module, "weight_quantizer", None), getattr(module, "input_quantizer", None))
            pattern = ".".join("*" if part.isdigit() else part for part in name.split("."))
            key = (pattern, *(quantizer and quantizer.bits for quantizer in quantizers))
            groups.setdefault(key, []).append(math.prod(getattr(module, "latent_shape", module.weight.shape)))
            members.setdefault(key, []).append(name)
    patterns = [key[0] for key in groups]
    names = {key: key[0] if patterns.count(key[0]) == 1 else _numbered(members[key]) for key in groups}
    return [ModuleBits(names[key], len(sizes), sum(sizes), *key[1:]) for key, sizes in groups.items()]


def _numbered(names: list[str]) -> str:
    """Names that differ in their numbers as one name with all of these.

    >>> _numbered(["layer.1.query", "layer.2.query"])
    'layer.1,2.query'
    """
    return ".".join(",".join(dict.fromkeys(parts)) for parts in zip(*(name.split(".") for name in names), strict=True))


def _layers(anatomy: Anatomy, quantization: Quantization) -> Iterable[int]:
    every = range(len(anatomy.sites))
    if quantization.layers is None:
        return every
    if anatomy.shares_weights:
        raise TrituneError("layers: a layer range cannot be quantized where layers share their weights; leave it null")
    if outside := [layer for layer in quantization.layers if layer not in every]:
        raise TrituneError(f"layers: {outside} are outside this model's layers 0 to {len(every) - 1}")
    return quantization.layers


def _check_patterns(quantization: Quantization, names: list[str]) -> None:
    winners = {quantization.pattern_of(name) for name in names}
    for pattern in quantization.modules or {}:
        if pattern not in winners:
            reason = (
                "only matches modules that an earlier pattern takes"
                if any(fnmatchcase(name, pattern) for name in names)
                else f"matches no quantized module; one of them is {names[0] if names else 'none at all'}"
            )
            raise TrituneError(f"modules: the pattern {shown(pattern)} {reason}")


def _check_causal(quantization: Quantization, names: list[str]) -> None:
    for name in names:
        own = quantization.of_module(name)
        if own.activation_bits is not None and own.activation_granularity != Granularity.TOKEN:
            raise TrituneError(
                f"activation_granularity: {own.activation_granularity} would show {name} of this causal model its "
                "later tokens through the scale they share; set it to token"
            )


def _twin(module: nn.Module, quantization: Quantization, parts: tuple[int, ...]) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return QuantEmbedding.from_float(module, _started(quantization.embedding(*module.weight.shape), module))
    rows, columns = module.weight.flatten(1).shape
    activations = quantization.activations(columns)
    if isinstance(activations, Calibrated):
        activations = _beside(activations, module.weight, module.training)
    weights = _started(quantization.weights(rows, columns, parts), module)
    kind = QuantConv2d if isinstance(module, nn.Conv2d) else QuantLinear
    return kind.from_float(module, weights, activations)


def _started(quantizer: Quantizer | None, module: nn.Module) -> Quantizer | None:
    """The quantizer of a weight; what it learns starts from the weight."""
    if isinstance(quantizer, Calibrated):
        _beside(quantizer, module.weight, module.training).reset()
        quantizer.calibrate(module.weight.detach().flatten(1))
    return quantizer


def _beside(quantizer: Calibrated, neighbour: nn.Module | nn.Parameter, training: bool) -> Calibrated:
    return quantizer.to(neighbour.device).train(training)
