"""Module swap: the float modules of an instrumented model give way to their quantized twins."""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from .anatomy import Anatomy
from .errors import TrituneError
from .instrument import instrument_of
from .layers import QuantEmbedding, QuantLinear
from .quantization import Quantization


def swap(model: PreTrainedModel, quantization: Quantization) -> None:
    """Quantize the parts of `model` that `quantization` names, in place.

    Raises:
        TrituneError: the model holds quantized modules already, or `quantization.layers` does not fit it.
    """
    if any(isinstance(module, QuantLinear | QuantEmbedding) for module in model.modules()):
        raise TrituneError(f"this {type(model).__name__} is prepared already; start from the float model")
    instrument = instrument_of(model)
    layers = _layers(instrument.anatomy, quantization)
    for part, names in instrument.anatomy.parts(layers).items():
        if getattr(quantization, part):
            for name in names:
                model.set_submodule(name, _twin(model.get_submodule(name), quantization))
    for state in instrument.states:
        if state.layers[0] in layers:
            for operand, quantizer in quantization.products().items():
                setattr(state, operand, quantizer)


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
