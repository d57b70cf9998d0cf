"""What native parts of a model have in common: none is stale, none is copied, none takes a call that torch must see."""

from collections.abc import Sequence
from operator import is_
from typing import Any

import torch
from torch import nn

from ..modeling.attention import STATE_ATTRIBUTE

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OPERANDS = ("query", "key", "attention_probs", "value", "products")


class Attached:
    """Something native that lies on a module and was made of its tensors; in a copy of the module None lies there."""

    def __reduce__(self) -> tuple:
        return _nothing, ()


def _nothing() -> None:
    return None


class Tensors:
    """The tensors of some modules, in the state that they were in.

    Args:
        modules: whose own tensors these are, not those of their children.

    Attributes:
        all: the tensors.
    """

    def __init__(self, modules: Sequence[nn.Module]):
        holders = [module._parameters for module in modules] + [module._buffers for module in modules]
        self._held = [(holder, [*holder.values()]) for holder in holders if holder]
        self.all = [tensor for _, tensors in self._held for tensor in tensors if tensor is not None]
        # An alias keeps the memory: given new values elsewhere, a tensor could land at the old address.
        self._memory = [tensor.detach() for tensor in self.all]
        self._versions, self._addresses = self._now()

    def are_unchanged(self) -> bool:
        """Whether they are the same tensors with the same values, as far as autograd counts changes."""
        return _are_held(self._held) and self._now() == (self._versions, self._addresses)

    def _now(self) -> tuple[list[int], list[int]]:
        return [tensor._version for tensor in self.all], [tensor.data_ptr() for tensor in self.all]


class Parts:
    """The modules inside a model, in the state that they were in.

    Nothing in here knows the model itself: what lies on it and holds this would keep it alive.

    Args:
        model: whose parts they are.
    """

    def __init__(self, model: nn.Module):
        modules = [*model.modules()]
        self.tensors = Tensors(modules)
        self._children = [(module._modules, [*module._modules.values()]) for module in modules if module._modules]
        self._own = [vars(module) for module in modules if module is not model]
        self._hooks = [own[kind] for own in self._own for kind in _HOOKS]
        self._states = [own[STATE_ATTRIBUTE] for own in self._own if STATE_ATTRIBUTE in own]
        self._then = self._now()

    def are_unchanged(self) -> bool:
        """Whether they compute what they computed then: in evaluation mode, and nobody listens to them."""
        return (
            not any(own["training"] for own in self._own)
            and _are_held(self._children)
            and self.tensors.are_unchanged()
            and self._now() == self._then
        )

    def _now(self) -> tuple[list, ...]:
        quantizers = [own.get("input_quantizer") for own in self._own]
        operands = [getattr(state, name) for state in self._states for name in _OPERANDS]
        hooks = [len(hooks) and sum(not _is_transformers(hook) for hook in hooks.values()) for hooks in self._hooks]
        # Set by libraries that wrap a module.
        wraps = [own.get("forward") for own in self._own]
        return quantizers, operands, hooks, wraps


def _are_held(holders: list[tuple[dict[str, Any], list]]) -> bool:
    """Whether dictionaries hold the very values that they held."""
    return all(len(holder) == len(values) and all(map(is_, holder.values(), values)) for holder, values in holders)


def _is_transformers(hook: Any) -> bool:
    """Whether a hook is one of those that transformers leaves on modules once it was asked for hidden states."""
    return getattr(hook, "__module__", None) == "transformers.utils.output_capturing"


def is_plain_call() -> bool:
    """Whether a call wants numbers alone: nothing is traced or compiled, and autocast does not choose the precision."""
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"))


def is_plain(tensor: Any) -> bool:
    """Whether something is an ordinary tensor on the CPU, whose memory can be read."""
    return type(tensor) is torch.Tensor and tensor.is_cpu and tensor.layout is torch.strided
