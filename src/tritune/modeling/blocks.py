"""A model taken apart: what lies before its blocks, one block at a time, and what lies behind them.

What a block (see `block_names`) is called with besides the hidden state (masks, rotary embeddings) is the model's own
business, so it is recorded: a shell of the model, which shares every tensor with it and whose blocks hand their input
on, runs for next to nothing. Rejected: hooks that stop the model at a block, which compute every block before it once
more; kept calls of a whole pass, which cost that pass.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .instrument import blocks_of, make_sample_inputs
from .modes import evaluation_mode

Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class BlockCall:
    """What one call of a block takes besides the hidden state."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Skipped(nn.Module):
    """Stands for a block: records its calls, and hands the hidden state on."""

    def __init__(self, block: nn.Module, shell: "_Shell"):
        super().__init__()
        # Neither is a part of this module.
        object.__setattr__(self, "block", block)
        object.__setattr__(self, "shell", shell)

    def __getattr__(self, name: str) -> Any:
        """Some models ask a block for its kind of attention before they call it."""
        return getattr(self.block, name)

    def forward(self, state: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        state = self.shell.passed(state, BlockCall(args, kwargs))
        return (state,) if self.shell.tuples else state


@dataclass
class _Shell:
    """One run of a model without its blocks.

    Attributes:
        layers: how many calls of blocks there are.
        tuples: whether blocks return tuples.
        last: what the last block is to have returned; None for its input.
        first: the hidden state before the first block.
        calls: of all blocks, in their order.
    """

    layers: int
    tuples: bool
    last: torch.Tensor | None = None
    first: torch.Tensor | None = None
    calls: list[BlockCall] = field(default_factory=list)

    def passed(self, state: torch.Tensor, call: BlockCall) -> torch.Tensor:
        """The hidden state behind a block."""
        if not self.calls:
            self.first = state
        self.calls.append(call)
        return self.last if self.last is not None and len(self.calls) == self.layers else state


class Blocks:
    """The blocks of an instrumented model, and ways to run its parts apart.

    Args:
        model: as `tritune.instrument` or `tritune.prepare` returns it.

    Attributes:
        names: of the block that computes each layer, one per layer; layers that share weights name the same one.

    Raises:
        UnsupportedModelError: the layers are no blocks that follow each other.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.names = blocks_of(model)
        self._tuples = self._give_tuples()

    def stem(self, batch: Batch) -> tuple[torch.Tensor, list[BlockCall]]:
        """The hidden state before the first block, (batch, tokens, width), and what every block is called with."""
        shell = self._run(batch)[0]
        assert shell.first is not None  # the anatomy has seen the calls
        return shell.first, shell.calls

    def block(self, layer: int, state: torch.Tensor, call: BlockCall) -> torch.Tensor:
        """The hidden state behind a layer, from the one before it, (batch, tokens, width)."""
        output = self.model.get_submodule(self.names[layer])(state, *call.args, **call.kwargs)
        return output[0] if isinstance(output, tuple) else output

    def answer(self, batch: Batch, state: torch.Tensor) -> Any:
        """The model's output for a batch whose hidden state behind the last block is `state`."""
        return self._run(batch, state)[1]

    def _run(self, batch: Batch, last: torch.Tensor | None = None) -> tuple[_Shell, Any]:
        shell = _Shell(len(self.names), self._tuples, last)
        # Every tensor, and every block, stands for itself in the copy: only the modules around them are new.
        modules = {name: self.model.get_submodule(name) for name in dict.fromkeys(self.names)}
        kept = [*self.model.parameters(), *self.model.buffers()]
        memo: dict[int, Any] = {id(tensor): tensor for tensor in kept}
        memo |= {id(module): _Skipped(module, shell) for module in modules.values()}
        return shell, copy.deepcopy(self.model, memo)(**batch)

    def _give_tuples(self) -> bool:
        """Whether blocks return tuples."""
        outputs: list[Any] = []
        block = self.model.get_submodule(self.names[0])
        handle = block.register_forward_hook(lambda module, args, output: outputs.append(output))
        try:
            with evaluation_mode(self.model), torch.no_grad():
                self.model(**make_sample_inputs(self.model))
        finally:
            handle.remove()
        return isinstance(outputs[0], tuple)
