"""`convert`: a QAT model becomes a packed model, in place: codes and scales instead of latent weights."""

import torch
from transformers import PreTrainedModel

from ..errors import TrituneError, shown
from .pack_modules import pack_modules
from .plugin import FORMAT_VERSION, PACKED, TrituneConfig, mark

FLOATS = (torch.float32, torch.float16)


def convert(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Turn a QAT model into a packed model.

    Every weight that has a quantizer becomes codes, packed as `packing` draws it, and a scale; the latent weights are
    gone, so the model cannot be trained further. In float32 its logits are those of the QAT model in evaluation mode,
    bit for bit. `save_pretrained` writes the packed checkpoint.

    Args:
        model: from `prepare`, or a loaded QAT checkpoint. Changed in place, as `prepare` does; convert a
            `copy.deepcopy` to keep the QAT model.
        dtype: of the parameters that stay float: `torch.float32`, or `torch.float16` for a smaller file and answers
            that differ in the third digit or so. Scales of weights keep their own precision.

    Returns:
        The model, in evaluation mode.

    Raises:
        TrituneError: the model is a float model or packed already, a weight has a quantizer that cannot be packed, or a
            quantized weight is shared with a float module.
    """
    config = getattr(model.config, "quantization_config", None)
    if not isinstance(config, TrituneConfig):
        raise TrituneError(f"this {type(model).__name__} is a float model; prepare and train it first")
    if config.is_packed:
        raise TrituneError(f"this {type(model).__name__} is already packed")
    if dtype not in FLOATS:
        raise TrituneError(f"dtype must be torch.float32 or torch.float16; got {shown(dtype)}")
    pack_modules(model)
    model.to(dtype)  # type: ignore[arg-type]  # transformers wraps it without self
    mark(model, TrituneConfig(PACKED, config.quantization, FORMAT_VERSION))
    return model.eval()
