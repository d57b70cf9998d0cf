"""What the teacher says of every training row, computed once and read back in later epochs.

The teacher never changes, so from the second epoch on its forward pass, about a quarter of a step, can be looked up.
The price is disk: attention scores grow with the square of the length. Values are kept in float32 as they came, so
training with the cache is training without it, up to the last bits that a row owes to its batch mates.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers.modeling_outputs import ModelOutput

from ..errors import TrituneError
from ..trace import LayerTrace, ModelTrace

ROW = "row"
_FILLED, _LOGITS, _HIDDEN = "filled", "logits", "hidden_states"
# Fields with a key axis beside the token axis.
_SQUARE = ("attention_scores", "attention_probs")
# Fields whose token axis is the one before the last.
_PER_TOKEN = ("context", "attention_projection", "attention_block_output", _HIDDEN)

Forward = Callable[[dict[str, torch.Tensor]], ModelOutput]


class TeacherCache:
    """Outputs of a frozen model by row number, in one file per field.

    Args:
        folder: where the files lie; those of an interrupted run are used again.
        rows: of the training set.
        length: tokens of its longest batch.
        fields: of `LayerTrace`, or "hidden_states", that are kept beside the logits.
        sample: the model's output, with a trace of `fields`, for any batch; its shapes are taken.
        visited: rows that will be asked for, at most; for the check of the disk.

    Raises:
        TrituneError: the disk has no room; the message says how much is needed and how much there is.
    """

    def __init__(self, folder: Path, rows: int, length: int, fields: frozenset[str], sample: ModelOutput, visited: int):
        shapes = {name: _row_shape(name, tensor, length) for name, tensor in _packed(sample, fields).items()}
        self.folder, self.fields = folder, fields
        folder.mkdir(parents=True, exist_ok=True)
        needed = 4 * min(rows, visited) * sum(math.prod(shape) for shape in shapes.values())
        free = shutil.disk_usage(folder).free
        if needed - self.used_bytes() > free:
            raise TrituneError(
                f"cache_teacher: needs {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free; "
                "turn it off, or take fewer rows or a shorter max_length"
            )
        self.files = {name: _open(folder / name, np.float32, (rows, *shape)) for name, shape in shapes.items()}
        self.filled = _open(folder / _FILLED, np.uint8, (rows,))

    def used_bytes(self) -> int:
        """What the files take on disk so far."""
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
        self.filled[index] = 1
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


def _open(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """A file that takes disk only where it was written to."""
    return np.memmap(path, dtype, "r+" if path.is_file() else "w+", shape=shape)
