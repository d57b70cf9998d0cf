"""`prepare`: a float model becomes a QAT model, in place, with its own names and parameters."""

import torch
from transformers import PreTrainedModel

from .checkpoint import TrituneConfig, mark
from .instrument import instrument
from .quantization import Quantization
from .swap import swap


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
        sample_inputs: a small batch to find the attention sites with; made up from the config when None.

    Returns:
        The model.

    Raises:
        UnsupportedModelError: the family cannot be served.
        TrituneError: the model is prepared already, or `quantization.layers` does not fit it.
    """
    quantization = quantization or Quantization()
    swap(instrument(model, sample_inputs), quantization)
    mark(model, TrituneConfig(quantization=quantization))
    return model
