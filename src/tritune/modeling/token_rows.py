"""`keep_token_rows`: some rows of a float model's token embedding become the embedding of a smaller model.

What has a row per token is found by comparing shapes: every tensor of the model with fewer tokens whose shape differs
(the embedding, an output layer, tied or not, its bias). Rejected: `resize_token_embeddings`, which cuts rows off the
end only.
"""

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import TrituneError, first_line, shown
from .anatomy import unsupported, word_embedding_of
from .rebuild import build_like, check_float, counting_keys, owners_of


def keep_token_rows(model: PreTrainedModel, rows: Sequence[int]) -> PreTrainedModel:
    """A new model of the same class whose token embedding has only the rows `rows` of that of `model`.

    Token number `rows[i]` becomes number `i`, in the ids of the config (`pad_token_id` and others) as well.

    Args:
        model: a float model; it stays as it is.
        rows: token ids, ascending; all of `needed_rows(model)` are among them.

    Returns:
        The model, in evaluation mode. For the same tokens, it computes what `model` does, bit for bit.

    Raises:
        UnsupportedModelError: the model has no table of token embeddings, or no key of its config sets its length.
        TrituneError: the model is quantized, or `rows` does not fit it.
    """
    check_float(model)
    if (embedding := word_embedding_of(model)) is None:
        raise unsupported(model, "it has no table of token embeddings")
    count = embedding.num_embeddings
    _check_rows(rows, count, needed_rows(model))
    place = {row: index for index, row in enumerate(rows)}
    small = _built(model, count, place)
    if (generation := getattr(model, "generation_config", None)) is not None:
        small.generation_config = copy.deepcopy(generation)
        _renumber(small.generation_config, place)
    kept = torch.tensor(rows, device=model.device)
    given, wanted = model.state_dict(), small.state_dict()
    for name in [*given, *wanted]:
        if name not in given or name not in wanted or not _fits(given[name], wanted[name], count, len(rows)):
            raise unsupported(model, f"{name} has another form where there are fewer tokens")
    small.load_state_dict({name: _selected(given[name], tensor, kept) for name, tensor in wanted.items()})
    return small.eval()


def needed_rows(model: PreTrainedModel) -> set[int]:
    """The token ids that a model cannot do without: those its config names.

    Where positions count from the padding id, as in RoBERTa, also those before it, so that it stays.
    """
    embedding = word_embedding_of(model)
    count = 0 if embedding is None else embedding.num_embeddings
    owners = [*owners_of(model.config).values(), getattr(model, "generation_config", None)]
    needed = {row for owner in owners for _, ids in _named_ids(owner) for row in _listed(ids) if row in range(count)}
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            needed |= set(range(module.padding_idx + 1))
    return needed


def _check_rows(rows: Sequence[int], count: int, needed: set[int]) -> None:
    if not rows or any(before >= after for before, after in pairwise(rows)):
        raise TrituneError(f"rows: must be token ids in ascending order, got {shown(list(rows))}")
    if rows[0] < 0 or rows[-1] >= count:
        raise TrituneError(f"rows: token ids are 0 to {count - 1}, got {rows[0]} to {rows[-1]}")
    if missing := needed - set(rows):
        raise TrituneError(f"rows: {shown(sorted(missing))} must be kept, which the model's config names")


def _built(model: PreTrainedModel, count: int, place: dict[int, int]) -> PreTrainedModel:
    """A model with as many tokens as `place` has."""
    failure = "no key of its config sets the number of its tokens"
    for part, key in counting_keys(model.config, "vocab_size", count):
        config = copy.deepcopy(model.config)
        for owner in owners_of(config).values():
            _renumber(owner, place)
        setattr(owners_of(config)[part], key, len(place))
        try:
            with torch.device("meta"):
                found = word_embedding_of(type(model)(config))
        except Exception as error:
            failure = f"it cannot be built with {len(place)} tokens ({first_line(error)})"
            continue
        if found is not None and found.num_embeddings == len(place):
            return build_like(model, config)
    raise unsupported(model, failure)


def _named_ids(owner: Any) -> Iterator[tuple[str, Any]]:
    """The keys of a config that name tokens, with their values."""
    for key, value in vars(owner).items() if owner is not None else ():
        if key.endswith("token_id") and (type(value) is int or isinstance(value, list)):
            yield key, value


def _listed(ids: int | list[int]) -> list[int]:
    return ids if isinstance(ids, list) else [ids]


def _renumber(owner: Any, place: dict[int, int]) -> None:
    """Write the new numbers of tokens into a config; an id without a row stays as it is."""
    for key, ids in list(_named_ids(owner)):
        new = [place.get(row, row) for row in _listed(ids)]
        setattr(owner, key, new if isinstance(ids, list) else new[0])


def _fits(given: torch.Tensor, wanted: torch.Tensor, count: int, fewer: int) -> bool:
    """Whether the tensors differ at most in one dimension, which counts tokens."""
    sizes = [pair for pair in zip(given.shape, wanted.shape, strict=False) if pair[0] != pair[1]]
    return given.dim() == wanted.dim() and sizes in ([], [(count, fewer)])


def _selected(given: torch.Tensor, wanted: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    dims = [dim for dim, size in enumerate(wanted.shape) if size != given.shape[dim]]
    return given.index_select(dims[0], kept) if dims else given
