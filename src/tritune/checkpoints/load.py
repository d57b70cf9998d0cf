"""Models and tokenizers from a folder or the hub, whole and sound before anything is computed or written."""

import hashlib
import logging
import re
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import WEIGHTS_NAME, cached_file

from ..errors import TrituneError, first_line, shown
from .engine import attach
from .hub import located
from .integrity import bytes_of
from .plugin import METHOD, TrituneConfig, is_packed
from .weight_files import reading_options, wrapping

# transformers replaces methods of its classes while it loads; of two threads one would leave them replaced.
_LOADING = threading.RLock()


def load_pretrained(kind: Any, source: str | Path, **head: Any) -> PreTrainedModel:
    """A model on the CPU in float32.

    Args:
        kind: the transformers class, Auto or not, that loads it.
        source: a local folder or a hub name.
        **head: of a new head, as `from_pretrained` takes it; without any, the head must be there.

    Raises:
        TrituneError: the source is not a model, or its weights are incomplete or not finite.
    """
    config = load_config(source)
    if (takes := getattr(kind, "_model_mapping", None)) is not None and type(config) not in takes:
        raise TrituneError(f"{source}: {shown(config.model_type)} is not a type of model that {kind.__name__} supports")
    if not head:
        # A cross-encoder of sentence-transformers has the file too, and a head.
        headless = not any("For" in name for name in config.architectures or ())
        if kind is not AutoModel and headless and (Path(source) / "modules.json").is_file():
            raise TrituneError(
                f"{source}: a sentence encoder gives embeddings, not labels; fine-tune it first (tritune finetune), or "
                "use sentence-transformers"
            )
        _check_label_names(config, source)
    # A config may ask for more outputs than we reckon with.
    plain = {"output_hidden_states": False, "output_attentions": False, "return_dict": True}
    options = {"dtype": torch.float32, "ignore_mismatched_sizes": bool(head), **plain, **head}
    model, report = _from_pretrained(kind, source, config, options)
    if getattr(config, "quantization_config", None) is not None and getattr(model, "hf_quantizer", None) is None:
        raise TrituneError(f"{source}: the quantization_config in its config.json has an unknown quant_method")
    _check_weights(model, report, source, new_head=bool(head))
    if is_packed(model) and not head:
        attach(model, _folder_of(source))
    return model


def load_masked_lm(source: str | Path) -> PreTrainedModel:
    """A masked language model, on the CPU in float32.

    Raises:
        TrituneError: the source is not a model, or not a masked language model with the weights of its head, or its
            weights are incomplete or not finite.
    """
    config = load_config(source)
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise TrituneError(f"{source}: models of type {config.model_type} have no masked language modeling head")
    model, report = _from_pretrained(AutoModelForMaskedLM, source, config, {"dtype": torch.float32})
    if getattr(config, "quantization_config", None) is not None:
        raise TrituneError(f"{source}: quantized; give a float masked language model")
    if missing := sorted(report["missing_keys"] | {key for key, *_ in report["mismatched_keys"]}):
        raise TrituneError(
            f"{source}: not a masked language model: {', '.join(missing[:3])} have no weights; give the pretrained "
            "model, not a fine-tuned one"
        )
    _check_finite(model, source)
    return model


def load(source: str | Path, engine: str | None = None, **options: Any) -> PreTrainedModel:
    """A checkpoint of tritune, QAT or packed, as an instance of the class it was saved from.

    Stricter than `from_pretrained`: a weight that is missing or that the model has no place for is an error. A packed
    model on the CPU in float32 runs in the native engine where that is possible; its attribute `engine` says so.

    Args:
        source: a local folder or a hub name.
        engine: of a packed model: `native`, or an error that says why not; `reference`, torch alone, whose outputs are
            bit for bit those of the trained model; None takes what the environment variable `TRITUNE_ENGINE` names, or
            else the best that runs it.
        **options: of `from_pretrained`, such as `dtype` or `device_map`.

    Returns:
        The model in evaluation mode; the tokenizer comes from `AutoTokenizer.from_pretrained(source)`.

    Raises:
        TrituneError: the source is not a checkpoint of tritune, its files are damaged or incomplete, or the engine that
            was asked for does not run it.
    """
    config = load_config(source)
    section = getattr(config, "quantization_config", None)
    if not isinstance(section, dict) or section.get("quant_method") != METHOD:
        raise TrituneError(f"{source}: not a checkpoint of tritune; load it with transformers' Auto classes")
    model = _load_whole(source, config, options)
    if is_packed(model):
        attach(model, _folder_of(source), engine)
    elif engine is not None:
        raise TrituneError(f"{source}: not packed, so engine={shown(engine)} has no meaning; convert it first")
    return model


def load_float(source: str | Path) -> PreTrainedModel:
    """A float model with whatever head it has, as an instance of the class it was saved from, on the CPU in float32.

    Raises:
        TrituneError: the source is not a model or a quantized one, or its files are damaged or incomplete.
    """
    config = load_config(source)
    if getattr(config, "quantization_config", None) is not None:
        raise TrituneError(f"{source}: already quantized; give a float model")
    return _load_whole(source, config, {"dtype": torch.float32})


def _load_whole(source: str | Path, config: PreTrainedConfig, options: dict[str, Any]) -> PreTrainedModel:
    """An instance of the class that `config` names; no weight is missing or left over."""
    names = config.architectures or ["no class"]
    kind = getattr(transformers, str(names[0]), None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise TrituneError(f"{source}: its class {shown(names[0])} is not in transformers; load it with that class")
    model, report = _from_pretrained(kind, source, config, options)
    _check_complete(report, source)
    return model


def _folder_of(source: str | Path) -> Path:
    """The folder that a model was just loaded from: of a hub name, that in the cache."""
    return Path(str(cached_file(located(source), "config.json"))).parent


def _from_pretrained(
    kind: Any, source: str | Path, config: PreTrainedConfig, options: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model of the class `kind` and what transformers reports of the loading."""
    found = located(source)
    try:
        options = {"output_loading_info": True, "trust_remote_code": False, **reading_options(found, config), **options}
        with _LOADING, _quiet():
            model, report = kind.from_pretrained(found, **options)
            is_float = getattr(config, "quantization_config", None) is None
            if is_float and (prefix := wrapping(report["missing_keys"], report["unexpected_keys"])):
                model, report = kind.from_pretrained(found, key_mapping={f"^{re.escape(prefix)}": ""}, **options)
                warnings.warn(f"{source}: {prefix} in front of the names of all weights was taken off", stacklevel=2)
    except TrituneError as error:
        raise _named(error, source) from None
    except UnpicklingError:
        raise TrituneError(
            f"{source}: {WEIGHTS_NAME} holds more than plain tensors, so reading it could run code; save the model as "
            "safetensors first"
        ) from None
    except Exception as error:
        reason = first_line(error)
        if "ignore_mismatched_sizes" in reason:
            reason = "the shapes of its weights do not match its config.json"
        raise TrituneError(f"{source}: not a model that can be loaded ({reason}); save or download it again") from None
    return model, report


def _check_complete(report: dict[str, Any], source: str | Path) -> None:
    faults = {
        "missing": report["missing_keys"],
        "unexpected": report["unexpected_keys"],
        "of another shape": {name for name, *_ in report["mismatched_keys"]},
    }
    for fault, names in faults.items():
        if names:
            raise TrituneError(f"{source}: {', '.join(sorted(names)[:3])}: {fault}; download or convert it again")


def _check_label_names(config: PreTrainedConfig, source: str | Path) -> None:
    labels = config.id2label or {}
    named = all(isinstance(name, str | int) for name in labels.values())
    if not named or set(labels) != set(range(len(labels))) or len(set(labels.values())) < len(labels):
        raise TrituneError(
            f"{source}: id2label in its config.json must give each label from 0 to {len(labels) - 1} a name of its own"
        )


def _check_weights(model: PreTrainedModel, report: dict, source: str | Path, new_head: bool) -> None:
    if is_packed(model) and not new_head:
        _check_complete(report, source)
    missing = sorted(report["missing_keys"] | {key for key, *_ in report["mismatched_keys"]})
    is_bare = model.base_model is model
    prefix = "" if is_bare else f"{model.base_model_prefix}."
    encoder = [key for key in missing if key.startswith(prefix) and "pooler." not in key]
    # Many sentence encoders come without the pooler, which their embedding does not need.
    if encoder or (missing and not new_head and not is_bare):
        advice = "the weights are not this model's" if encoder else "fine-tune it first (tritune finetune)"
        raise TrituneError(f"{source}: {', '.join((encoder or missing)[:3])} have no weights; {advice}")
    if not new_head and (extra := _unknown_layers(model, report["unexpected_keys"])):
        raise TrituneError(f"{source}: has weights of {extra[0]}, which its config.json leaves out; correct that")
    _check_finite(model, source)


def _check_finite(model: PreTrainedModel, source: str | Path) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise TrituneError(f"{source}: the weight {name} holds NaN or infinite values")


def _unknown_layers(model: PreTrainedModel, keys: Iterable[str]) -> list[str]:
    """Layers that have weights and are missing from a list of layers that the model has."""
    modules = dict(model.named_modules())
    layers = {match[0] for key in keys for match in re.finditer(r"^.+?\.\d+(?=\.)", key)}
    return sorted(layer for layer in layers if layer not in modules and layer.rpartition(".")[0] in modules)


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether `model` is a QAT or a packed model."""
    return isinstance(getattr(model.config, "quantization_config", None), TrituneConfig)


def load_tokenizer(source: str | Path, model: PreTrainedModel, max_length: int) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, from the same folder.

    Raises:
        TrituneError: there is none, it has more tokens than the model's embedding, or `max_length` is beyond the
            model's positions.
    """
    found = located(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(found, trust_remote_code=False)
        tokenizer("\N{SNOWMAN}")  # one that cannot say "unknown" fails no sooner than here
        largest = max(tokenizer.get_vocab().values(), default=-1)
    except Exception as error:
        raise TrituneError(
            f"{source}: no tokenizer can be loaded ({first_line(error)}); save the model's tokenizer into its folder"
        ) from None
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise TrituneError(f"{source}: the model's folder has no tokenizer (its vocabulary would be empty)")
    embedding = model.get_input_embeddings()
    if isinstance(embedding, nn.Embedding):
        rows = embedding.num_embeddings
        if max(len(tokenizer), largest + 1) > rows:
            raise TrituneError(
                f"{source}: the tokenizer has {len(tokenizer)} tokens, ids up to {largest}, and the model's embedding "
                f"only {rows} rows; they do not belong together"
            )
        if 2 * len(tokenizer) < rows:
            raise TrituneError(
                f"{source}: the tokenizer has {len(tokenizer)} tokens and the model's embedding {rows} rows; "
                "tokens are missing; save the model's tokenizer into its folder"
            )
    room = positions(model)
    if room is not None and max_length > room:
        raise TrituneError(f"max_length {max_length} is more than the {room} positions of {source}")
    return tokenizer


def weights_sha256(model: nn.Module) -> str:
    """A hash of names, shapes and bytes of all weights; equal for equal models wherever they lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def load_config(source: str | Path) -> PreTrainedConfig:
    """The config of a model.

    Raises:
        TrituneError: the source is not a model.
    """
    path = Path(source)
    if path.is_file():
        raise TrituneError(f"{source}: this is a file; give the folder that holds the model")
    found = located(source)
    if path.is_dir() and not (path / "config.json").is_file():
        raise TrituneError(f"{source}: not a model: the folder has no config.json")
    try:
        config = AutoConfig.from_pretrained(found, trust_remote_code=False)
    except TrituneError as error:
        raise _named(error, source) from None
    except Exception as error:
        raise TrituneError(
            f"{source}: not a model: its config cannot be read ({first_line(error)}); download it again"
        ) from None
    names = config.architectures
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise TrituneError(f"{source}: architectures in its config.json must be a list of names, got {shown(names)}")
    return config


def positions(model: PreTrainedModel) -> int | None:
    """Tokens that the position embedding has room for; RoBERTa's kin start counting after the padding id."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - offset
    return getattr(model.config, "max_position_embeddings", None)


def _named(error: TrituneError, source: str | Path) -> TrituneError:
    return type(error)(f"{source}: {error}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading reports of transformers become our own errors; its table of missing keys would say it twice.

    A filter for this thread alone: of two threads that set the level back, the second would set it to the first one's.
    """
    handlers, thread = logging.getLogger("transformers").handlers, threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= logging.ERROR

    for handler in handlers:
        handler.addFilter(passes)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(passes)
