"""Checkpoints: what transformers calls in `from_pretrained` and `save_pretrained`, by way of `plugin`.

A QAT checkpoint holds the latent weights under their own names and a `quantization_config` of method "tritune" in
`config.json`. Without tritune imported, transformers would load such a folder as a float model with no more than a
warning; therefore `config.json` also asks for the attention implementation "tritune", which then does not exist, and
the load fails with a line that names it.

A packed checkpoint holds bytes instead of quantized weights, under the same names: their shape is a second reason
for such a load to fail. A checksum of every tensor and of the config is checked before any weight is used. Which
modules are packed is not stored: it follows from the `Quantization`, as when the model was prepared.
"""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.quantizers import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..engine.integrity import (
    COVERED_KEYS,
    OWN_CHECKSUM,
    SECTION,
    config_checksum,
    is_free,
    verify_config,
    verify_tensors,
)
from ..errors import TrituneError, shown
from ..modeling.attention import IMPLEMENTATION
from ..modeling.instrument import instrument, instrument_skeleton
from ..modeling.quantization import Quantization
from ..modeling.swap import quantizer_tensors, swap
from .integrity import tensor_checksum
from .methods import give_methods, refuse_training
from .pack_modules import pack_modules, packed_modules

METHOD = "tritune"
QAT, PACKED = "qat", "packed"
# Of packed checkpoints; a change that an older tritune would misread takes the next number.
FORMAT_VERSION = 1

# Keys that transformers and the engine read of a config.json although they are no fields of every class.
_READ_BESIDES = (
    *("num_labels", "problem_type", "torch_dtype", "attn_implementation", "_attn_implementation", "tokenizer_class"),
    *("position_embedding_type", "is_decoder", "add_cross_attention", "rope_scaling", "rope_theta", "sub_configs"),
    *("output_attentions", "output_hidden_states", "return_dict", "use_return_dict", "pruned_heads", "auto_map"),
)


class TrituneConfig(QuantizationConfigMixin):
    """The `quantization_config` section of a checkpoint.

    Attributes:
        quant_method: "tritune".
        stage: "qat": latent float weights, quantized on the fly; "packed": codes and scales.
        quantization: what is quantized and how.
        format_version: of a packed checkpoint; None for "qat".
        checksums: of a packed checkpoint as it lies in its files, name to `integrity.tensor_checksum`.
        config_checksum: of its config.json.
        config_keys: the keys of that file which the checksum covers.

    Raises:
        TrituneError: an unknown stage, version or key, or a value out of range.
    """

    def __init__(
        self,
        stage: str = QAT,
        quantization: Quantization | None = None,
        format_version: int | None = None,
        checksums: dict[str, str] | None = None,
        config_checksum: str = "",
        config_keys: list[str] | None = None,
        **values: Any,
    ):
        values.pop("quant_method", None)
        if stage not in (QAT, PACKED):
            raise TrituneError(
                f"quantization_config: unknown stage {shown(stage)}; this version of tritune knows qat and packed"
            )
        if format_version != (FORMAT_VERSION if stage == PACKED else None):
            raise TrituneError(
                f"quantization_config: format_version {shown(format_version)} of a {stage} checkpoint; this version of "
                f"tritune reads packed checkpoints of version {FORMAT_VERSION}; upgrade tritune"
            )
        if unknown := set(values) - {field.name for field in fields(Quantization)}:
            raise TrituneError(f"quantization_config: unknown keys {sorted(unknown)}")
        self.quant_method = METHOD  # type: ignore[assignment]  # transformers' own enum; methods of others are plain names
        self.stage = stage
        self.quantization = quantization or Quantization(**values)
        self.format_version = format_version
        self.checksums = checksums or {}
        self.config_checksum = config_checksum
        self.config_keys = config_keys

    @property
    def is_packed(self) -> bool:
        """Whether the weights are codes."""
        return self.stage == PACKED

    def to_dict(self) -> dict[str, Any]:
        """Flat and ready for JSON."""
        values = {"quant_method": self.quant_method, "stage": self.stage, **asdict(self.quantization)}
        if self.quantization.modules is not None:
            values["modules"] = [list(row) for row in values["modules"].items()]  # config.json sorts keys of mappings
        if self.is_packed:
            values |= {
                "format_version": self.format_version,
                "checksums": self.checksums,
                OWN_CHECKSUM: self.config_checksum,
            }
            if self.config_keys is not None:  # else as it was written before there was such a list
                values[COVERED_KEYS] = self.config_keys
        return values


class TrituneQuantizer(HfQuantizer):
    """Rebuilds a QAT model after its latent weights are loaded, a packed one before its codes are."""

    requires_calibration = False
    quantization_config: TrituneConfig
    _files: list[str]

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        self._files = checkpoint_files or []
        if not self.quantization_config.is_packed:
            # The quantizers are not there yet, and their tensors must not look like somebody else's.
            ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
            model._keys_to_ignore_on_load_unexpected = {*ignored, r"_quantizer\.[a-z_0-9.]+$"}
            return
        if checkpoint_files:
            verify([Path(file) for file in checkpoint_files], self.quantization_config)
        swap(instrument_skeleton(model), self.quantization_config.quantization)
        pack_modules(model)
        for module in packed_modules(model).values():
            module._is_hf_initialized = True  # else transformers would draw normal values where bytes are missing

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if self.quantization_config.is_packed:
            _check_loaded(model)
        else:
            swap(instrument(model), self.quantization_config.quantization)
            load_quantizers(model, self._files)
        mark(model, self.quantization_config)
        return model

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[None, dict[str, str]]:
        """What `save_pretrained` asks before it writes: the checksums of a packed model are taken here."""
        config = model.config
        config.attn_implementation = IMPLEMENTATION  # the model may have been given another config since
        if self.quantization_config.is_packed:
            state = revert_weight_conversion(model, _without_tied(model))
            self.quantization_config.checksums = {name: tensor_checksum(state[name]) for name in sorted(state)}
            # As save_pretrained is about to set them.
            config.dtype = str(model.dtype).removeprefix("torch.")
            config.architectures = [type(model).__name__]
            config.quantization_config = self.quantization_config
            self.quantization_config.config_keys = _keys_read(config)
            self.quantization_config.config_checksum = config_checksum(json.loads(config.to_json_string()))
        return None, {}

    def is_serializable(self) -> bool:
        """Latent weights and codes are ordinary tensors."""
        return True

    @property
    def is_trainable(self) -> bool:
        """A QAT model, that is what it is for; a packed one has nothing left to train."""
        return not self.quantization_config.is_packed

    is_qat_trainable = is_trainable  # without adapters, too


def _without_tied(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The state dict as it is written: of weights that are one, transformers writes one."""
    state = dict(model.state_dict())
    for name, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if name in state and source in state and state[name].data_ptr() == state[source].data_ptr():
            del state[name]
    return state


@torch.no_grad()
def load_quantizers(model: PreTrainedModel, files: list[str]) -> None:
    """Read what the quantizers of a swapped QAT model have learned.

    Args:
        model: its quantizers take the values.
        files: the safetensors files of its checkpoint.

    Raises:
        TrituneError: a value is missing or of another shape.
    """
    wanted = {name: tensor.detach() for name, tensor in quantizer_tensors(model).items()}
    if not wanted:
        return
    found: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys() if "_quantizer." in name}  # noqa: SIM118
    for name, tensor in revert_weight_conversion(model, wanted).items():
        value = found.get(name)
        if value is None or value.shape != tensor.shape:
            raise TrituneError(f"the checkpoint has no {name} of shape {tuple(tensor.shape)}; train or save it again")
        tensor.copy_(value)


def _check_loaded(model: PreTrainedModel) -> None:
    """Check that everything of a packed model came out of its files, and is what can have been packed."""
    for name, module in packed_modules(model).items():
        # Set by transformers on what came out of a file; without it the weight is whatever lay in memory.
        if not (_came(module.weight) and _came(module.packed) and _came(module.weight_scale)):
            raise TrituneError(f"{name} has no packed weight of its shape; load it with the class it was saved from")
        module.check(name)
    for name, tensor in quantizer_tensors(model).items():
        if not _came(tensor):
            raise TrituneError(f"{name} is not in the checkpoint; load it with the class it was saved from")
        if not tensor.isfinite().all():
            raise TrituneError(f"{name}: holds NaN or infinite values; the file is damaged")


def _keys_read(config: PreTrainedConfig) -> list[str]:
    """The keys of a config.json that may decide what a model computes, whether they are in it or not."""
    keys = {*config.to_dict(), *config.attribute_map, *_READ_BESIDES} - {SECTION, "id2label"}
    return sorted(key for key in keys if not is_free(key))


def _came(tensor: torch.Tensor) -> bool:
    return getattr(tensor, "_is_hf_initialized", False)


def verify(paths: list[Path], section: TrituneConfig | None = None) -> None:
    """Check the files of a packed checkpoint, before anything of them is used.

    Args:
        paths: its safetensors files; `config.json` lies beside them.
        section: the `quantization_config` that was read of it; None takes that of the file.

    Raises:
        TrituneError: a file is not what was written; the message names it.
    """
    checksums = verify_config(paths[0].parent / "config.json")
    if section is not None and section.checksums != checksums:
        raise TrituneError(f"{paths[0]}: the given config belongs to a different checkpoint")
    verify_tensors(paths, checksums)


def mark(model: PreTrainedModel, config: TrituneConfig) -> None:
    """Write `config` into the model, so that `save_pretrained` keeps it and Trainer knows what to do."""
    # Were it said to be quantized, transformers would refuse to cast it, and Trainer even to evaluate it.
    vars(model).update(hf_quantizer=TrituneQuantizer(config), is_quantized=False)
    give_methods(model)
    if config.is_packed:
        model.register_forward_pre_hook(refuse_training, prepend=True)
    model.config.quantization_config = config
    model.config.attn_implementation = IMPLEMENTATION


def is_packed(model: torch.nn.Module) -> bool:
    """Whether `model` is a packed model."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    return isinstance(config, TrituneConfig) and config.is_packed
