"""Norm-based analysis of attention (Kobayashi et al., EMNLP 2020), as in EMNLP 2022, Fig. 6.

What a token x sends through a head is alpha * f(x) with f(x) = (x W_V + b_V) W_O, one head's columns of W_O at a time.
A quantized student's f is computed with what it multiplies by: quantized values and the quantized W_O.
"""

import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.attention import observe_attention, seen_value
from ..modeling.instrument import instrument_of
from .plots import beside_differences
from .subjects import Batch
from .traces import real_tokens, traced

QUANTITIES = {
    "alpha": "α",
    "transformed_norm": "‖f(x)‖",
    "weighted_norm": "‖αf(x)‖",
    "summed_weighted_norm": "‖Σαf(x)‖",
}


@dataclass(frozen=True)
class LayerNorms:
    """The norms of one layer.

    Attributes:
        alpha: (batch, heads, query, key), the attention probabilities.
        transformed_norm: (batch, heads, key), ‖f(x)‖.
        weighted_norm: (batch, heads, query, key), ‖alpha f(x)‖.
        summed_weighted_norm: (batch, query, key), ‖sum over heads of alpha f(x)‖.
    """

    alpha: torch.Tensor
    transformed_norm: torch.Tensor
    weighted_norm: torch.Tensor
    summed_weighted_norm: torch.Tensor


@dataclass(frozen=True)
class Norms:
    """Mean norms by model, layer, head and group of tokens.

    Attributes:
        models: names.
        groups: of the tokens that are attended to: cls, sep, punctuation, other, all; those that the rows have.
        alpha, weighted_norm: (models, layers, heads, groups), mean over all pairs of a query and a key of the group.
        transformed_norm: (models, layers, heads, groups), mean over the tokens of the group.
        summed_weighted_norm: (models, layers, groups), mean over those pairs.
    """

    models: list[str]
    groups: list[str]
    alpha: np.ndarray
    transformed_norm: np.ndarray
    weighted_norm: np.ndarray
    summed_weighted_norm: np.ndarray


def layer_norms(model: PreTrainedModel, batch: Batch) -> list[LayerNorms]:
    """The norms of every layer, in float64.

    The vectors alpha f(x), (batch, heads, query, key, width), are never made: the norm of one is alpha ‖f(x)‖, and
    that of their sum over heads follows from the inner products of the heads' f(x).

    Args:
        model: instrumented.
        batch: keyword arguments of the model.
    """
    values: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    with observe_attention(lambda call: values.append((call.operands[2], call.masked))):
        maps = traced(model, batch, "attention_probs")
    instrument = instrument_of(model)
    quantizers = {layer: state.value for state in instrument.states for layer in state.layers}
    norms = []
    for index, (alpha, (value, masked), site) in enumerate(zip(maps, values, instrument.anatomy.sites, strict=True)):
        quantizer = quantizers[index]
        value = value.repeat_interleave(alpha.shape[1] // value.shape[1], dim=1)  # grouped queries
        if quantizer is not None:
            value = quantizer(seen_value(value, masked, quantizer))
        norms.append(_layer_norms(alpha.double(), value.double(), _weight(model.get_submodule(site.projection))))
    return norms


def _weight(linear: nn.Module) -> torch.Tensor:
    """What a Linear multiplies by, (out features, in features): quantized where it is."""
    name = "quantized_weight" if hasattr(linear, "quantized_weight") else "weight"
    return getattr(linear, name).detach().double()


def _layer_norms(alpha: torch.Tensor, value: torch.Tensor, weight: torch.Tensor) -> LayerNorms:
    heads, width = value.shape[1], value.shape[3]
    transformed = torch.einsum("bhkd,ohd->bkho", value, weight.view(len(weight), heads, width))
    inner = transformed @ transformed.mT  # (batch, key, heads, heads)
    norm = inner.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt().transpose(1, 2)
    # One head at a time: (batch, heads, heads, query, key) would be several times as large as the maps.
    squares = torch.zeros_like(alpha[:, 0])
    for head in range(heads):
        squares += alpha[:, head] * (alpha * inner[:, :, head].transpose(1, 2)[:, :, None]).sum(1)
    return LayerNorms(alpha, norm, alpha * norm[:, :, None], squares.clamp(min=0).sqrt())


def token_groups(tokenizer: PreTrainedTokenizerBase, size: int, token: str | None = None) -> dict[str, torch.Tensor]:
    """Which entries of the vocabulary belong to cls, sep, punctuation and other.

    Args:
        tokenizer: of the models.
        size: rows of the word embedding.
        token: adds a group for this token.

    Returns:
        Group to bool, (size).
    """
    names = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    plain = [(name or "").removeprefix("##").lstrip("Ġ▁ ") for name in names]
    special = set(tokenizer.all_special_ids)
    members = {
        "cls": {tokenizer.cls_token_id},
        "sep": {tokenizer.sep_token_id},
        "punctuation": {i for i, text in enumerate(plain) if text and all(c in string.punctuation for c in text)},
    }
    members["punctuation"] -= special
    members["other"] = set(range(size)) - set().union(*members.values()) - special
    if token is not None:
        members[token] = {tokenizer.convert_tokens_to_ids(token)}
    groups = {name: torch.zeros(size, dtype=torch.bool) for name in members}
    for name, ids in members.items():
        groups[name][sorted(i for i in ids if i is not None)] = True
    return groups


def norms(
    models: Mapping[str, PreTrainedModel],
    batches: Iterable[Batch],
    groups: Mapping[str, torch.Tensor] | None = None,
) -> Norms:
    """Mean norms of every head, by group of the token that is attended to.

    Args:
        models: name to instrumented model of one shape.
        batches: keyword arguments of the models.
        groups: as `token_groups` returns them; None for all tokens together only.
    """
    sums: dict[str, dict[str, list]] = {name: {} for name in models}
    names = [*(groups or {}), "all"]
    for batch in batches:
        for name, model in models.items():
            layers = layer_norms(model, batch)
            _add(sums[name], layers, *_masks(batch, groups or {}, layers[0].transformed_norm[:, 0]))
    means = {quantity: np.stack([_mean(sums[name][quantity]) for name in models]) for quantity in QUANTITIES}
    found = [i for i in range(len(names)) if not np.isnan(means["transformed_norm"][..., i]).all()]
    return Norms(list(models), [names[i] for i in found], **{key: value[..., found] for key, value in means.items()})


def _masks(batch: Batch, groups: Mapping[str, torch.Tensor], like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of the keys by group, (groups, batch, key), and of the queries, (batch, query), of the dtype of `like`."""
    real = real_tokens(batch)
    if real is None:
        real = torch.ones_like(like, dtype=torch.bool)
    members = [group.to(real.device)[batch["input_ids"]] & real for group in groups.values()]
    return torch.stack([*members, real]).to(like.dtype), real.to(like.dtype)


def _add(sums: dict[str, list], layers: list[LayerNorms], keys: torch.Tensor, queries: torch.Tensor) -> None:
    """Add a batch's sums and counts by layer, head and group to `sums`."""
    tokens, pairs = keys.sum((1, 2)), torch.einsum("gbk,bq->g", keys, queries)
    over = {
        "alpha": ("bhqk,gbk,bq->hg", pairs, queries),
        "transformed_norm": ("bhk,gbk,b->hg", tokens, torch.ones_like(queries[:, 0])),
        "weighted_norm": ("bhqk,gbk,bq->hg", pairs, queries),
        "summed_weighted_norm": ("bqk,gbk,bq->g", pairs, queries),
    }
    for quantity, (equation, count, rows) in over.items():
        total = torch.stack([torch.einsum(equation, getattr(layer, quantity), keys, rows) for layer in layers])
        before = sums.setdefault(quantity, [0, 0])
        sums[quantity] = [before[0] + total.cpu(), before[1] + count.cpu()]


def _mean(total_and_count: list[torch.Tensor]) -> np.ndarray:
    """(layers, heads, groups) or (layers, groups); NaN for a group that no token belongs to."""
    total, count = (tensor.numpy() for tensor in total_and_count)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=np.broadcast_to(count > 0, total.shape))


def plot_norm_maps(result: Norms, group: str) -> Figure:
    """Heat maps, layers by heads, of the attention to one of the groups: models, then differences from the first."""
    columns = 2 * len(result.models) - 1
    figure = Figure(figsize=(2.6 * columns + 1, 7.5), layout="constrained")
    grid = figure.subplots(3, columns, squeeze=False, sharex=True, sharey=True)
    for row, quantity in zip(grid, ("alpha", "transformed_norm", "weighted_norm"), strict=True):
        values = getattr(result, quantity)[..., result.groups.index(group)]
        panels = beside_differences(result.models, values, "viridis")
        for axes, (title, panel, colours) in zip(row, panels, strict=True):
            image = axes.imshow(panel, aspect="auto", **colours)
            figure.colorbar(image, ax=axes, shrink=0.8)
            axes.set(xticks=range(panel.shape[1]), yticks=range(panel.shape[0]))
            if axes.get_subplotspec().is_first_row():
                axes.set_title(title, fontsize="medium")
        row[0].set_ylabel(f"{QUANTITIES[quantity]}\nlayer")
    for axes in grid[-1]:
        axes.set_xlabel("head")
    figure.suptitle(f"Attention to {group} tokens" if group != "all" else "Attention to all tokens")
    return figure


def plot_norm_curves(result: Norms) -> Figure:
    """A row per quantity and a column per group of tokens: the mean over heads by layer, a line per model."""
    figure = Figure(figsize=(2.6 * len(result.groups) + 1, 9), layout="constrained")
    grid = figure.subplots(len(QUANTITIES), len(result.groups), squeeze=False, sharex=True, sharey="row")
    for row, (quantity, title) in zip(grid, QUANTITIES.items(), strict=True):
        values = getattr(result, quantity)
        curves = values if quantity == "summed_weighted_norm" else values.mean(2)
        for column, (axes, group) in enumerate(zip(row, result.groups, strict=True)):
            for name, curve in zip(result.models, curves[..., column], strict=True):
                axes.plot(curve, marker="o", markersize=3, label=name)
            if axes.get_subplotspec().is_first_row():
                axes.set_title(group)
        row[0].set_ylabel(title)
    for axes in grid[-1]:
        axes.set(xlabel="layer", xticks=range(curves.shape[1]))
    grid[0][0].legend(fontsize="small")
    return figure


def summarize_norms(result: Norms) -> list[list[str]]:
    """Of every model and group, the means over layers and heads as rows of a table, the header first."""
    rows = []
    for i, name in enumerate(result.models):
        for j, group in enumerate(result.groups):
            rows.append(
                [name, group, *(f"{getattr(result, quantity)[i, ..., j].mean():.4g}" for quantity in QUANTITIES)]
            )
    return [["model", "tokens", *QUANTITIES.values()], *rows]
