"""A float checkpoint that any library loads: weights are the dequantized codes, and nothing else is left of QAT.

Its Linears compute with the same ternary weights, but activations and attention products are float: its outputs are
close to the QAT model's, not equal.
"""

from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ...checkpoints.files import usual_modes
from ...modeling.swap import quantizer_tensors

_OF_TRITUNE = ("quantization_config", "attn_implementation")


def dense(model: PreTrainedModel) -> PreTrainedModel:
    """A float model of the same class with weights scale * codes, to the bit; `model` is not changed.

    Its config knows nothing of tritune, and its attention is transformers' own.
    """
    plain = type(model)(plain_config(model))
    learned = quantizer_tensors(model)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items() if name not in learned}
    for name, module in model.named_modules():
        if hasattr(module, "quantized_weight"):
            state[f"{name}.weight"] = module.quantized_weight
            for own in ("weight_scale", "weight_codes"):
                state.pop(f"{name}.{own}", None)
    plain.load_state_dict(state)
    return plain.eval()


def plain_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The config of `model` without the keys that tritune wrote."""
    values = {key: value for key, value in model.config.to_dict().items() if key not in _OF_TRITUNE}
    return type(model.config).from_dict(values)


def export_dense(model: PreTrainedModel, folder: str | Path) -> None:
    """Write `dense(model)` as `save_pretrained` does."""
    with torch.no_grad(), usual_modes(folder):
        dense(model).save_pretrained(folder)
