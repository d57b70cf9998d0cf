"""Processes that share the rows of a batch, each with a copy of the model; their sums are averaged as DDP averages."""

from collections.abc import Mapping, Sequence

import torch
from torch import distributed


def process_count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def own_rows(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The rows of a batch, every tensor (rows, ...), that fall to this process: every n-th of n processes."""
    count = process_count()
    if count == 1:
        return dict(batch)
    return {name: tensor[distributed.get_rank() :: count] for name, tensor in batch.items()}


def average(tensors: Sequence[torch.Tensor]) -> None:
    """Replace tensors by their mean over all processes, which hold tensors of the same shapes."""
    if (count := process_count()) == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    for tensor, mean in zip(tensors, (flat / count).split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))
