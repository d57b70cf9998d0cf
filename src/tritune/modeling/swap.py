"""Module swap: float modules give way to quantized twins."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import TrituneError, shown
from ..quant import Calibrated, Granularity, MovingMinMax
from .anatomy import Anatomy
from .instrument import instrument_of
from .layers import FakeQuantized, QuantConv2d, QuantEmbedding, Quantized, QuantLinear, RowLinear, twin_of
from .quantization import Quantization


def swap(model: PreTrainedModel, quantization: Quantization) -> None:
    """Quantize the parts of `model` that `quantization` names, in place.

    Raises:
        TrituneError: the model holds quantized modules already, or `quantization.layers`, `patch_embedding` or a
            pattern of `quantization.modules` does not fit it.
    """
    if any(isinstance(module, Quantized) for module in model.modules()):
        raise TrituneError(f"this {type(model).__name__} is already prepared; start from the float model")
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
            model.set_submodule(name, twin_of(model.get_submodule(name), RowLinear))
    for name, state in states.items():
        attention = model.get_submodule(name)
        site = instrument.anatomy.sites[state.layers[0]]
        features = site.fused_rows[0] if site.fused_rows else model.get_parameter(f"{site.query}.weight").shape[0]
        for operand, quantizer in quantization.of_module(name).products(features, site.causal).items():
            setattr(state, operand, quantizer)
            if isinstance(quantizer, Calibrated):  # the attention module saves, moves and trains it
                attention.add_module(f"{operand}_quantizer", quantizer.to(model.device).train(attention.training))
    instrument.ranges = [module for module in model.modules() if isinstance(module, MovingMinMax)]


def quantizer_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What the quantizers of `model` learn or remember, by its names in the state dict."""
    return {
        f"{name}.{own}": tensor
        for name, module in model.named_modules()
        if isinstance(module, Calibrated)
        for own, tensor in module.state_dict(keep_vars=True).items()
    }


def _layers(anatomy: Anatomy, quantization: Quantization) -> Iterable[int]:
    every = range(len(anatomy.sites))
    if quantization.layers is None:
        return every
    if anatomy.shares_weights:
        raise TrituneError("layers: a layer range cannot be quantized where layers share their weights; leave it null")
    if outside := [layer for layer in quantization.layers if layer not in every]:
        raise TrituneError(f"layers: {outside} are not among this model's layers 0 to {len(every) - 1}")
    return quantization.layers


def _check_patterns(quantization: Quantization, names: list[str]) -> None:
    winners = {quantization.pattern_of(name) for name in names}
    for pattern in quantization.modules or {}:
        if pattern not in winners:
            reason = (
                "matches only modules that an earlier pattern already matches"
                if any(fnmatchcase(name, pattern) for name in names)
                else f"matches no quantized module; {f'one is {names[0]}' if names else 'there are none'}"
            )
            raise TrituneError(f"modules: the pattern {shown(pattern)} {reason}")


def _check_causal(quantization: Quantization, names: list[str]) -> None:
    for name in names:
        own = quantization.of_module(name)
        if own.activation_bits is not None and own.activation_granularity != Granularity.TOKEN:
            raise TrituneError(
                f"activation_granularity: {own.activation_granularity} lets {name} of this causal model see later "
                "tokens through the scale they share; set it to token"
            )


def _twin(module: nn.Module, quantization: Quantization, parts: tuple[int, ...]) -> FakeQuantized:
    """The quantized twin of a float module; what the quantizer of a weight learns starts from the weight."""
    assert isinstance(module, nn.Embedding | nn.Linear | nn.Conv2d)
    rows, columns = module.weight.flatten(1).shape
    kind: type[FakeQuantized]
    if isinstance(module, nn.Embedding):
        kind, weights, activations = QuantEmbedding, quantization.embedding(rows, columns), None
    else:
        kind = QuantConv2d if isinstance(module, nn.Conv2d) else QuantLinear
        weights, activations = quantization.weights(rows, columns, parts), quantization.activations(columns)
    for quantizer in (weights, activations):
        if isinstance(quantizer, Calibrated):
            quantizer.to(module.weight.device).train(module.training)
    if isinstance(weights, Calibrated):
        weights.reset()
        weights.calibrate(module.weight.detach().flatten(1))
    return kind.from_float(module, weights, activations)
