"""What the teacher says of every training row, computed once and read back in later epochs.

The teacher never changes, so from the second epoch on its forward pass, about a quarter of a step, can be looked up.
The price is disk: attention scores grow with the square of the length. Values are kept in float32, so
training with the cache is training without it, up to the last bits that a row owes to its batch mates.
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
# Of an output beside its trace: logits, or the state that a sentence's embedding is pooled of.
_ANSWERS = ("logits", "last_hidden_state")
# Fields with a key axis beside the token axis.
_SQUARE = ("attention_scores", "attention_probs")
# Fields whose token axis is the one before the last.
_PER_TOKEN = ("context", "attention_projection", "attention_block_output", _HIDDEN, "last_hidden_state")

Forward = Callable[[dict[str, torch.Tensor]], ModelOutput]


class TeacherCache:
    """Outputs of a frozen model by row number, in one file per field.

    Args:
        folder: where the files lie; what lies there already is replaced. A run that goes on fills them again: it cannot
            know what a crash left of them.
        rows: of the training set.
        length: tokens of its longest batch. Shorter batches must be padded on the right. None where all have as many.
        fields: of `LayerTrace`, or "hidden_states", that are kept beside the logits or the last state.
        sample: the model's output, with a trace of `fields` if there are any, for any batch; its shapes are taken.
        layers: whose fields are kept, see `distil.layer_map.distilled_layers`; None for all, and the embeddings too.

    Raises:
        TrituneError: the disk has no room; the message says how much is needed and how much there is.
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
        self.count = len(sample.trace.layers) if fields else 0
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
        length = self.count + 1 if self.layers is not None else hidden.shape[1]
        return ModelOutput(**answers, trace=ModelTrace(layers, tuple(map(states.get, range(length)))))

    def _kept(self, count: int, after: int = 0) -> Sequence[int]:
        """Places that are kept of `count`; hidden state l + 1 comes `after` layer l."""
        return range(count) if self.layers is None else [layer + after for layer in self.layers]

    def _packed(self, output: ModelOutput) -> dict[str, torch.Tensor]:
        """Field to one tensor, (batch, layers, ...), or for what is no layer's (batch, ...)."""
        packed = {name: output[name] for name in _ANSWERS if output.get(name) is not None}
        for name in sorted(self.fields):
            hidden, trace = name == _HIDDEN, output.trace
            tensors = trace.hidden_states if hidden else [getattr(layer, name) for layer in trace.layers]
            packed[name] = torch.stack([tensors[place] for place in self._kept(len(tensors), after=hidden)], dim=1)
        return packed


def _row_shape(name: str, tensor: torch.Tensor, length: int | None) -> tuple[int, ...]:
    shape = list(tensor.shape[1:])
    if length is None:
        return tuple(shape)
    if name in (*_SQUARE, *_PER_TOKEN):
        shape[-2] = length
    if name in _SQUARE:
        shape[-1] = length
    return tuple(shape)


def _cut(name: str, tokens: int | None) -> tuple:
    """The part of a row's array that a batch of so many tokens fills; None is all of it."""
    if name in _SQUARE:
        return (..., slice(tokens), slice(tokens))
    return (..., slice(tokens), slice(None)) if name in _PER_TOKEN else (...,)


def _create(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A file of float32 whose place on the disk is taken now: a disk that fills up later would kill the process."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
    return np.memmap(path, np.float32, "r+", shape=shape)
