"""`shrink`: some layers of a float model become a shallower float model.

The layers are found as everything here is, by running the model once: they are the children of the one `nn.ModuleList`
that holds an attention site each. The number of layers is found by trying: a key of the config that counts them makes
that list shorter. Rejected: tables of families; cutting the list in place, which leaves the config, layer numbers and
per-layer settings behind.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import TrituneError, first_line, shown
from .anatomy import unsupported
from .instrument import instrument, instrument_of
from .rebuild import build_like, check_float, counting_keys, owners_of

# The config's note of what a shrunk model was made of: {"layers": [1, 3, 5], "of": 6}.
NOTE = "tritune_shrunk"

# What transformers derives from the number of layers where a model can be a backbone (BEiT, DINOv2).
_DERIVED = ("stage_names", "out_features", "out_indices")


def shrink(
    model: PreTrainedModel, layers: Sequence[int], sample_inputs: dict[str, torch.Tensor] | None = None
) -> PreTrainedModel:
    """A new model of the same class that has only some layers of `model`, with their weights.

    Everything outside the layers is kept: embeddings, pooler, classifier, labels. Layers 1, 3, 5, 7, 9, 11 of a
    fine-tuned BERT-base are the six-layer Skip-BERT of *Extreme Compression for Pre-trained Transformers Made Simple
    and Efficient* (Wu et al., NeurIPS 2022).

    Args:
        model: a float model; it stays as it is.
        layers: which to keep, counted from 0; they stand in the new model in this order.
        sample_inputs: a small batch to find the layers with; made up from the config when None.

    Returns:
        The model, in evaluation mode; its config notes the layers.

    Raises:
        UnsupportedModelError: the family is not supported, its layers share weights or do not lie in one list, or its
            config has no key that counts them.
        TrituneError: the model is quantized, `layers` does not fit it, or a layer cannot stand where it would come to.
    """
    check_float(model)
    path, depth = _find_layers(model, sample_inputs)
    _check_layers(layers, depth)
    weights = dict(_renumbered(model.state_dict(), path, layers))
    config = _shorter_config(model, path, layers, depth)
    small = build_like(model, config)
    _check_weights(small.state_dict(), weights, path, layers)
    small.load_state_dict(weights)
    setattr(small.config, NOTE, {"layers": list(layers), "of": depth})
    return small.eval()


def layers_kept(config: PreTrainedConfig, depth: int) -> tuple[int, ...] | None:
    """The layers that a model was shrunk to, if `shrink` made it from one of `depth` layers; else None."""
    note = getattr(config, NOTE, None)
    return tuple(note["layers"]) if isinstance(note, dict) and note.get("of") == depth else None


def _find_layers(model: PreTrainedModel, sample_inputs: dict[str, torch.Tensor] | None) -> tuple[str, int]:
    """The name of the list that holds the layers, and their number."""
    anatomy = instrument_of(instrument(copy.deepcopy(model), sample_inputs)).anatomy
    if anatomy.shares_weights:
        raise unsupported(model, "its layers share one set of weights, so none can be removed")
    sites = anatomy.sites
    for name, module in model.named_modules():
        one_each = (site.attention.startswith(f"{name}.{layer}.") for layer, site in enumerate(sites))
        if isinstance(module, nn.ModuleList) and len(module) == len(sites) and all(one_each):
            return name, len(sites)
    raise unsupported(model, f"its {len(sites)} attention blocks do not lie in one list of layers, one in each")


def _check_layers(layers: Sequence[int], depth: int) -> None:
    known = f"this model's layers are 0 to {depth - 1}"
    if not layers:
        raise TrituneError(f"layers: at least one must be kept; {known}")
    for layer in layers:
        if type(layer) is not int or not 0 <= layer < depth:
            raise TrituneError(f"layers: there is no layer {shown(layer)}; {known}")
        if layers.count(layer) > 1:
            raise TrituneError(f"layers: {layer} is given twice; each layer can be kept only once")


def _renumbered(
    weights: dict[str, torch.Tensor], path: str, layers: Sequence[int]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that are kept, under the names they have in the shallower model."""
    place = {str(layer): str(index) for index, layer in enumerate(layers)}
    for name, tensor in weights.items():
        if not name.startswith(f"{path}."):
            yield name, tensor
            continue
        layer, _, rest = name.removeprefix(f"{path}.").partition(".")
        if layer in place:
            yield f"{path}.{place[layer]}.{rest}", tensor


def _shorter_config(model: PreTrainedModel, path: str, layers: Sequence[int], depth: int) -> PreTrainedConfig:
    """The config of a model whose list at `path` is as long as `layers`."""
    failure = "no key of its config sets the number of its layers"
    for part, key in counting_keys(model.config, "num_hidden_layers", depth):
        config = copy.deepcopy(model.config)
        owner = owners_of(config)[part]
        try:
            _cut_lists(owner, layers, depth)
            setattr(owner, key, len(layers))
            config = type(config).from_dict({k: v for k, v in config.to_dict().items() if k not in _DERIVED})
            with torch.device("meta"):
                found = type(model)(config).get_submodule(path)
        except Exception as error:
            failure = f"it cannot be built with {len(layers)} layers ({first_line(error)})"
            continue
        if isinstance(found, nn.ModuleList) and len(found) == len(layers):
            return config
    raise unsupported(model, failure)


def _cut_lists(config: PreTrainedConfig, layers: Sequence[int], depth: int) -> None:
    """Cut settings that are given layer by layer, such as `layer_types`."""
    for key, value in vars(config).items():
        if "layer" in key and isinstance(value, list | tuple) and len(value) == depth:
            setattr(config, key, type(value)(value[layer] for layer in layers))


def _check_weights(
    wanted: dict[str, torch.Tensor], given: dict[str, torch.Tensor], path: str, layers: Sequence[int]
) -> None:
    """Families may build a layer by its place (ModernBERT's first has no norm before its attention)."""
    for name in [*wanted, *given]:
        if name in wanted and name in given and wanted[name].shape == given[name].shape:
            continue
        index = name.removeprefix(f"{path}.").partition(".")[0] if name.startswith(f"{path}.") else ""
        where = f"layer {layers[int(index)]} cannot become layer {index}" if index else "the layers cannot be left out"
        raise TrituneError(f"layers: {where}: its weights differ there ({name})")
