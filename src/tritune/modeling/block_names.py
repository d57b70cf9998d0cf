"""Which module is the block of each layer: found in the run that finds the attention sites.

A block is the module that turns one hidden state into the next: the outermost member of a `ModuleList` around an
attention module, and around no other. Layers that are no such blocks, as in Swin, which merges tokens between its
stages, have no names here: nothing but what works on whole blocks needs them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn


@dataclass(frozen=True)
class MemberCall:
    """A call of a member of a `ModuleList`.

    Attributes:
        name: of the member.
        args: its first positional argument; empty without one.
        output: what it returned.
    """

    name: str
    args: tuple[Any, ...]
    output: Any

    @property
    def state(self) -> Any:
        """The hidden state behind it, if it is a block."""
        return self.output[0] if isinstance(self.output, tuple) else self.output


@contextmanager
def recorded_members(model: nn.Module) -> Iterator[list[MemberCall]]:
    """Within the context, the calls of all members of all module lists of `model`, in the order of their returns."""
    calls: list[MemberCall] = []
    modules = dict(model.named_modules())
    handles = [
        module.register_forward_hook(
            lambda module, args, output, name=name: calls.append(MemberCall(name, args[:1], output))
        )
        for name, module in modules.items()
        if isinstance(modules.get(name.rpartition(".")[0]), nn.ModuleList)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def block_names(model: nn.Module, attentions: Sequence[str], calls: Sequence[MemberCall]) -> tuple[str, ...]:
    """The name of the block of each layer; layers that share weights name the same one.

    Args:
        model: the model that was run.
        attentions: names of the attention modules, one per layer.
        calls: of a whole run.

    Returns:
        One name per layer; nothing unless every layer is a block that takes what the one before it gives as its first
        argument.
    """
    names = tuple(_block_name(model, attention, set(attentions)) for attention in attentions)
    blocks = [call for call in calls if call.name in names]
    follow = all(after.args and after.args[0] is one.state for one, after in pairwise(blocks))
    is_chain = tuple(call.name for call in blocks) == names and bool(blocks[0].args) and follow
    return names if is_chain else ()


def _block_name(model: nn.Module, attention: str, attentions: set[str]) -> str:
    """Empty for an attention module that lies in no list of blocks."""
    parts, found = attention.split("."), ""
    for end in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:end])
        if any(f"{other}.".startswith(f"{name}.") for other in attentions - {attention}):
            break
        if isinstance(model.get_submodule(".".join(parts[: end - 1])), nn.ModuleList):
            found = name
    return found
