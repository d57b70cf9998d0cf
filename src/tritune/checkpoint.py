"""QAT checkpoints: the transformers plug-in behind `from_pretrained` and `save_pretrained`.

A checkpoint holds the latent weights under their own names and a `quantization_config` of method "tritune" in
`config.json`. Without tritune imported, transformers would load such a folder as a float model with no more than a
warning; therefore `config.json` also asks for the attention implementation "tritune", which then does not exist, and
the load fails with a line that names it.
"""

from dataclasses import asdict, fields
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .attention import IMPLEMENTATION
from .errors import TrituneError
from .instrument import instrument
from .quantization import Quantization
from .swap import quantizer_tensors, swap

METHOD = "tritune"


@register_quantization_config(METHOD)
class TrituneConfig(QuantizationConfigMixin):
    """The `quantization_config` section of a checkpoint.

    Attributes:
        quant_method: "tritune".
        stage: "qat": latent float weights, quantized on the fly.
        quantization: what is quantized and how.

    Raises:
        TrituneError: an unknown stage or key, or a value out of range.
    """

    def __init__(self, stage: str = "qat", quantization: Quantization | None = None, **values: Any):
        values.pop("quant_method", None)
        if stage != "qat":
            raise TrituneError(f"quantization_config: unknown stage {stage!r}; this version of tritune knows qat")
        if unknown := set(values) - {field.name for field in fields(Quantization)}:
            raise TrituneError(f"quantization_config: unknown keys {sorted(unknown)}")
        self.quant_method = METHOD
        self.stage = stage
        self.quantization = quantization or Quantization(**values)

    def to_dict(self) -> dict[str, Any]:
        """Flat and ready for JSON."""
        values = asdict(self.quantization)
        if self.quantization.modules is not None:
            values["modules"] = [
                list(row) for row in values["modules"].items()
            ]  # config.json sorts the keys of mappings
        return {"quant_method": self.quant_method, "stage": self.stage, **values}


@register_quantizer(METHOD)
class TrituneQuantizer(HfQuantizer):
    """Rebuilds a QAT model after its latent weights are loaded."""

    requires_calibration = False

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        self._files = checkpoint_files or []
        # The quantizers are not there yet, and their tensors must not look like somebody else's.
        ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
        model._keys_to_ignore_on_load_unexpected = {*ignored, r"_quantizer\.[a-z_]+$"}

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        swap(instrument(model), self.quantization_config.quantization)
        load_quantizers(model, self._files)
        mark(model, self.quantization_config.quantization)
        return model

    def is_serializable(self) -> bool:
        """Latent weights are ordinary tensors."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Yes: that is what a QAT model is for."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Yes, without adapters."""
        return True


@torch.no_grad()
def load_quantizers(model: PreTrainedModel, files: list[str]) -> None:
    """Read what the quantizers of a swapped model have learned.

    Args:
        model: its quantizers take the values.
        files: the safetensors files of its checkpoint.

    Raises:
        TrituneError: a value is missing or of another shape.
    """
    wanted = {name: tensor.detach() for name, tensor in quantizer_tensors(model).items()}
    if not wanted:
        return
    found = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys() if "_quantizer." in name}  # noqa: SIM118
    for name, tensor in revert_weight_conversion(model, wanted).items():
        value = found.get(name)
        if value is None or value.shape != tensor.shape:
            raise TrituneError(f"the checkpoint has no {name} of shape {tuple(tensor.shape)}; train or save it anew")
        tensor.copy_(value)


def mark(model: PreTrainedModel, quantization: Quantization) -> None:
    """Write `quantization` into the model, so that `save_pretrained` keeps it and Trainer accepts the model."""
    config = TrituneConfig(quantization=quantization)
    model.hf_quantizer = TrituneQuantizer(config)
    model.config.quantization_config = config
    model.config.attn_implementation = IMPLEMENTATION
