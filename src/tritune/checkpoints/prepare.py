"""`prepare`: a float model becomes a QAT model, in place, with its own names and parameters."""

import torch
from transformers import PreTrainedModel

from ..modeling.instrument import instrument, make_sample_inputs
from ..modeling.modes import evaluation_mode
from ..modeling.quantization import Quantization
from ..modeling.swap import swap
from ..quant import Calibrated
from .plugin import TrituneConfig, mark


def prepare(
    model: PreTrainedModel,
    quantization: Quantization | None = None,
    sample_inputs: dict[str, torch.Tensor] | None = None,
) -> PreTrainedModel:
    """Turn a float model into a QAT model.

    Linears and the word embedding are replaced by twins that share their parameters, and attention runs through our
    attention function; state-dict names stay the same. Parts whose quantization is switched off compute what they did,
    bit for bit (against `attn_implementation="eager"`).

    Args:
        model: a transformers encoder. Changed in place.
        quantization: what to quantize; None is W2A8 as in the papers.
        sample_inputs: a small batch to find the attention sites with, and to start learned ranges of activations from;
            made up from the config when None.

    Returns:
        The model.

    Raises:
        UnsupportedModelError: the family is not supported.
        TrituneError: the model is prepared already, or `quantization.layers` or `quantization.modules` does not fit it.
    """
    quantization = quantization or Quantization()
    swap(instrument(model, sample_inputs), quantization)
    _calibrate(model, sample_inputs)
    mark(model, TrituneConfig(quantization=quantization))
    return model


def _calibrate(model: PreTrainedModel, sample_inputs: dict[str, torch.Tensor] | None) -> None:
    """Start what activation quantizers learn or remember from one pass over a sample, without a gradient."""
    quantizers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, Calibrated) and "weight_quantizer" not in name.split(".")
    ]
    if not quantizers:
        return
    for quantizer in quantizers:
        quantizer.reset()
        quantizer.calibrating = True
    try:
        with evaluation_mode(model), torch.no_grad():
            model(**(make_sample_inputs(model) if sample_inputs is None else sample_inputs))
    finally:
        for quantizer in quantizers:
            quantizer.calibrating = False
