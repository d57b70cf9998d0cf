"""The teacher's outputs for every training row, computed once and read back in later epochs.

The teacher never changes, so its forward pass, about a quarter of a step, can be looked up. A run computes all rows
before its first step, those of similar length in one batch, which needs little padding.
The price is disk space: attention scores grow with the square of the sequence length. Values are stored in float32, so
training with and without the cache agree up to the last bits, in which a row depends on the rest of its batch.
"""

import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers.modeling_outputs import ModelOutput

from ..errors import TrituneError
from ..modeling.trace import LayerTrace, ModelTrace

ROW = "row"
_HIDDEN = "hidden_states"
# Outputs beside the trace: logits, or the state from which a sentence embedding is pooled.
_ANSWERS = ("logits", "last_hidden_state")
# Fields with a key axis beside the token axis.
_SQUARE = ("attention_scores", "attention_probs")
# Fields whose token axis is the one before the last.
_PER_TOKEN = ("context", "attention_projection", "attention_block_output", _HIDDEN, "last_hidden_state")

Forward = Callable[[dict[str, torch.Tensor]], ModelOutput]


class TeacherCache:
    """Outputs of a frozen model by row number, in one file per field.

    Args:
        folder: of the files; existing ones are replaced, since a crash may have left them in any state.
        rows: number of rows in the training set.
        length: tokens of its longest batch; shorter ones must be padded on the right. None if all have the same length.
        fields: of `LayerTrace`, or "hidden_states", stored in addition to the logits or the last hidden state.
        sample: an output of the model, with a trace of `fields` if there are any; its shapes are used.
        layers: whose fields are stored, from `distil.layer_map.distilled_layers`; None for all and the embeddings.

    Raises:
        TrituneError: the disk is too small; the message says how much space is needed and how much is free.
    """

    def __init__(
        self,
        folder: Path,
        rows: int,
        length: int | None,
        fields: frozenset[str],
        sample: ModelOutput,
        layers: tuple[int, ...] | None = None,
    ):
        self.folder, self.fields, self.layers = folder, fields, layers
        self.count = len(sample["trace"].layers) if fields else 0
        packed = self._packed(sample)
        shapes = {name: (rows, *_row_shape(name, tensor, length)) for name, tensor in packed.items()}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        needed, free = 4 * sum(map(math.prod, shapes.values())), shutil.disk_usage(folder).free
        try:
            if needed > free:
                raise OSError
            self.files = {name: _create(folder / name, shape) for name, shape in shapes.items()}
        except OSError:
            shutil.rmtree(folder)
            raise TrituneError(
                f"cache_teacher: needs {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free; turn it "
                "off, or use fewer rows or a shorter max_length"
            ) from None
        self.filled = np.zeros(rows, bool)

    def used_bytes(self) -> int:
        """Size of the files on disk."""
        return sum(512 * path.stat().st_blocks for path in self.folder.iterdir())

    def outputs(self, batch: dict[str, torch.Tensor], rows: torch.Tensor, forward: Forward) -> ModelOutput:
        """The model's output with its trace for a batch, read if every row is stored, else computed and stored.

        Args:
            batch: inputs of `forward`.
            rows: row numbers, (batch,).
            forward: the frozen model.
        """
        index = rows.cpu().numpy()
        ids = batch.get("input_ids")
        tokens = None if ids is None else ids.shape[1]
        if self.filled[index].all():
            return self._read(index, tokens, next(iter(batch.values())).device)
        output = forward(batch)
        for name, tensor in self._packed(output).items():
            cut = _cut(name, tokens)
            for number, value in zip(index, tensor.float().cpu().numpy(), strict=True):
                self.files[name][number][cut] = value
        self.filled[index] = True
        return output

    def _read(self, index: np.ndarray, tokens: int | None, device: torch.device) -> ModelOutput:
        read = {
            name: torch.from_numpy(np.stack([file[number][_cut(name, tokens)] for number in index])).to(device)
            for name, file in self.files.items()
        }
        answers, hidden = {name: read.pop(name) for name in _ANSWERS if name in read}, read.pop(_HIDDEN, None)
        layers = [LayerTrace() for _ in range(self.count)]
        for name, tensor in read.items():
            for place, layer in enumerate(self._kept(self.count)):
                setattr(layers[layer], name, tensor[:, place])
        if hidden is None:
            return ModelOutput(**answers, trace=ModelTrace(layers))
        states = dict(zip(self._kept(hidden.shape[1], after=1), hidden.unbind(1), strict=True))
        length, missing = self.count + 1 if self.layers is not None else hidden.shape[1], hidden.new_empty(0)
        return ModelOutput(**answers, trace=ModelTrace(layers, [states.get(i, missing) for i in range(length)]))

    def _kept(self, count: int, after: int = 0) -> Sequence[int]:
        """The stored ones of `count` places; hidden state l + 1 comes `after` layer l."""
        return range(count) if self.layers is None else [layer + after for layer in self.layers]

    def _packed(self, output: ModelOutput) -> dict[str, torch.Tensor]:
        """One tensor for each field, (batch, layers, ...), or (batch, ...) if it belongs to no layer."""
        packed = {name: output[name] for name in _ANSWERS if output.get(name) is not None}
        for name in sorted(self.fields):
            hidden, trace = name == _HIDDEN, output["trace"]
            tensors = trace.hidden_states if hidden else [getattr(layer, name) for layer in trace.layers]
            packed[name] = torch.stack([tensors[place] for place in self._kept(len(tensors), after=hidden)], dim=1)
        return packed


def _row_shape(name: str, tensor: torch.Tensor, length: int | None) -> tuple[int, ...]:
    shape = list(tensor.shape[1:])
    if length is not None and name in (*_SQUARE, *_PER_TOKEN):
        shape[-2] = length
    if length is not None and name in _SQUARE:
        shape[-1] = length
    return tuple(shape)


def _cut(name: str, tokens: int | None) -> tuple:
    """The part of a row's array that a batch of `tokens` tokens fills; None for all of it."""
    if name in _SQUARE:
        return (..., slice(tokens), slice(tokens))
    return (..., slice(tokens), slice(None)) if name in _PER_TOKEN else (...,)


def _create(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A float32 file whose disk space is allocated now: a disk that fills up later would kill the process."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
    return np.memmap(path, np.float32, "r+", shape=shape)
