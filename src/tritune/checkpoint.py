"""QAT checkpoints: the transformers plug-in behind `from_pretrained` and `save_pretrained`.

A checkpoint holds the latent weights under their own names and a `quantization_config` of method "tritune" in
`config.json`. Without tritune imported, transformers would load such a folder as a float model with no more than a
warning; therefore `config.json` also asks for the attention implementation "tritune", which then does not exist, and
the load fails with a line that names it.
"""

from dataclasses import asdict, fields
from typing import Any

from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from .attention import IMPLEMENTATION
from .errors import TrituneError
from .instrument import instrument
from .quantization import Quantization
from .swap import swap

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
        return {"quant_method": self.quant_method, "stage": self.stage, **values}


@register_quantizer(METHOD)
class TrituneQuantizer(HfQuantizer):
    """Rebuilds a QAT model after its latent weights are loaded."""

    requires_calibration = False

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        swap(instrument(model), self.quantization_config.quantization)
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


def mark(model: PreTrainedModel, quantization: Quantization) -> None:
    """Write `quantization` into the model, so that `save_pretrained` keeps it and Trainer accepts the model."""
    config = TrituneConfig(quantization=quantization)
    model.hf_quantizer = TrituneQuantizer(config)
    model.config.quantization_config = config
    model.config.attn_implementation = IMPLEMENTATION
