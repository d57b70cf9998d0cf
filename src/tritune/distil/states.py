"""The hidden states of many batches within a budget of memory: as they are, else in float16, else on disk."""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


class States:
    """A hidden state, (batch, tokens, width), for each of several batches; they are read and replaced by number.

    Args:
        budget_bytes: up to which they are kept in memory.
        batches: how many there will be; the first one tells how large they are.
    """

    def __init__(self, budget_bytes: int, batches: int):
        self._budget_bytes, self._batches = budget_bytes, batches
        self._tensors: dict[int, torch.Tensor] = {}
        self._folder: tempfile.TemporaryDirectory | None = None
        self._dtype: torch.dtype | None = None
        self._first: torch.Tensor | None = None

    def __getitem__(self, batch: int) -> torch.Tensor:
        assert self._first is not None  # what was not written cannot be read
        kept = load_file(self._file(batch))["state"] if self._folder is not None else self._tensors[batch]
        return kept.to(self._first)

    def __setitem__(self, batch: int, state: torch.Tensor) -> None:
        if self._first is None:
            self._place(state)
        kept = state.detach().to("cpu", self._dtype)
        if self._folder is not None:
            save_file({"state": kept.contiguous()}, self._file(batch))
        else:
            self._tensors[batch] = kept

    def copy(self) -> "States":
        """The states as they are now, within another budget of the same size."""
        other = States(self._budget_bytes, self._batches)
        for batch in range(self._batches):
            other[batch] = self[batch]
        return other

    def _place(self, first: torch.Tensor) -> None:
        """Decide on precision and place from the first state, as if every batch were as large."""
        self._first = first.new_empty(0)  # their precision and device
        size_bytes = first.numel() * first.element_size() * self._batches
        self._dtype = first.dtype if size_bytes <= self._budget_bytes else torch.float16
        if first.numel() * self._dtype.itemsize * self._batches > self._budget_bytes:
            self._folder = tempfile.TemporaryDirectory(prefix="tritune-states-")

    def _file(self, batch: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"{batch}.safetensors"
