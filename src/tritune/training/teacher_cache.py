"""What the teacher says of every training row, computed once and read back in later epochs.

The teacher never changes, so from the second epoch on its forward pass, about a quarter of a step, can be looked up.
The price is disk: attention scores grow with the square of the length. Values are kept in float32, so
training with the cache is training without it, up to the last bits that a row owes to its batch mates.
"""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers.modeling_outputs import ModelOutput

from ..errors import TrituneError
from ..trace import LayerTrace, ModelTrace

ROW = "row"
_LOGITS, _HIDDEN = "logits", "hidden_states"
# Fields with a key axis beside the token axis.
_SQUARE = ("attention_scores", "attention_probs")
# Fields whose token axis is the one before the last.
_PER_TOKEN = ("context", "attention_projection", "attention_block_output", _HIDDEN)

Forward = Callable[[dict[str, torch.Tensor]], ModelOutput]


class TeacherCache:
    """Outputs of a frozen model by row number, in one file per field.

    Args:
        folder: where the files lie; what lies there already is replaced. A run that goes on fills them again: it cannot
            know what a crash left of them.
        rows: of the training set.
        length: tokens of its longest batch. Shorter batches must be padded on the right.
        fields: of `LayerTrace`, or "hidden_states", that are kept beside the logits.
        sample: the model's output, with a trace of `fields`, for any batch; its shapes are taken.

    Raises:
        TrituneError: the disk has no room; the message says how much is needed and how much there is.
    """

    def __init__(self, folder: Path, rows: int, length: int, fields: frozenset[str], sample: ModelOutput):
        shapes = {name: (rows, *_row_shape(name, tensor, length)) for name, tensor in _packed(sample, fields).items()}
        self.folder, self.fields = folder, fields
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
                "off, or take fewer rows or a shorter max_length"
            ) from None
        self.filled = np.zeros(rows, bool)

    def used_bytes(self) -> int:
        """What the files take on disk."""
        return sum(512 * path.stat().st_blocks for path in self.folder.iterdir())

    def outputs(self, batch: dict[str, torch.Tensor], rows: torch.Tensor, forward: Forward) -> ModelOutput:
        """The model's output with its trace for a batch, read if every row is known, else computed and kept.

        Args:
            batch: what `forward` takes; (batch, tokens) and the like.
            rows: row numbers, (batch).
            forward: the frozen model.
        """
        index, tokens = rows.cpu().numpy(), batch["input_ids"].shape[1]
        if self.filled[index].all():
            return self._read(index, tokens, batch["input_ids"].device)
        output = forward(batch)
        for name, tensor in _packed(output, self.fields).items():
            cut = _cut(name, tokens)
            for number, value in zip(index, tensor.float().cpu().numpy(), strict=True):
                self.files[name][number][cut] = value
        self.filled[index] = True
        return output

    def _read(self, index: np.ndarray, tokens: int, device: torch.device) -> ModelOutput:
        read = {
            name: torch.from_numpy(np.stack([file[number][_cut(name, tokens)] for number in index])).to(device)
            for name, file in self.files.items()
        }
        logits, hidden = read.pop(_LOGITS), read.pop(_HIDDEN, None)
        count = next((tensor.shape[1] for tensor in read.values()), 0)
        layers = [LayerTrace(**{name: tensor[:, layer] for name, tensor in read.items()}) for layer in range(count)]
        trace = ModelTrace(layers, None if hidden is None else tuple(hidden.unbind(1)))
        return ModelOutput(logits=logits, trace=trace)


def _packed(output: ModelOutput, fields: frozenset[str]) -> dict[str, torch.Tensor]:
    """Field to one tensor, (batch, layers, ...); the logits are (batch, classes)."""
    packed = {_LOGITS: output.logits}
    for name in sorted(fields):
        tensors = output.trace.hidden_states if name == _HIDDEN else [getattr(x, name) for x in output.trace.layers]
        packed[name] = torch.stack(list(tensors), dim=1)
    return packed


def _row_shape(name: str, tensor: torch.Tensor, length: int) -> tuple[int, ...]:
    shape = list(tensor.shape[1:])
    if name in (*_SQUARE, *_PER_TOKEN):
        shape[-2] = length
    if name in _SQUARE:
        shape[-1] = length
    return tuple(shape)


def _cut(name: str, tokens: int) -> tuple:
    """The part of a row's array that a batch of so many tokens fills."""
    if name in _SQUARE:
        return (..., slice(tokens), slice(tokens))
    return (..., slice(tokens), slice(None)) if name in _PER_TOKEN else (...,)


def _create(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A file of float32 whose place on the disk is taken now: a disk that fills up later would kill the process."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
    return np.memmap(path, np.float32, "r+", shape=shape)
