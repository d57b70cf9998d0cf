"""What products may keep for a caller: the newest input during one call of a model, and weights within a block.

Both lie in context variables, so that every thread has its own. What is kept is found again by the very tensor alone,
in the state that it was in.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from ..quant import Quantizer
from ..quant.quantizer import Peak
from .kernels import integers

# Quantized values or codes, the codes' scale, and the largest magnitudes of what was quantized.
Quantized = tuple[torch.Tensor, torch.Tensor | None, Peak]
Quantize = Callable[[torch.Tensor, Quantizer, torch.dtype | None], Quantized]


class NewestInput:
    """Room for one input of a product and what it was quantized to: Q, K and V are fed the same tensor in turn."""

    kept: tuple[weakref.ref, tuple, Quantized] | None = None


_room: ContextVar[NewestInput | None] = ContextVar("room", default=None)
# Weights, each with an alias, what its codes depend on, and the codes.
_HeldWeights = dict[torch.Tensor, tuple[torch.Tensor, tuple, Quantized]]
_held_weights: ContextVar[_HeldWeights | None] = ContextVar("held_weights", default=None)


def keep_newest_input(room: NewestInput | None) -> NewestInput | None:
    """Have the products that follow keep their newest input in `room`, or none; returns where it was kept before."""
    before = _room.get()
    _room.set(room)
    return before


@contextmanager
def weights_held() -> Iterator[None]:
    """Within the context a weight is quantized once and again only when it has changed.

    A change is seen by autograd's count of in-place operations. What goes around it (`weight.data.mul_(2)`) needs
    `forget_weights`; therefore no weight is held unless somebody opens this context. It may be opened within itself.
    """
    if _held_weights.get() is not None:
        yield
        return
    token = _held_weights.set({})
    try:
        yield
    finally:
        _held_weights.reset(token)


def forget_weights() -> None:
    """Drop what `weights_held` holds: the next product quantizes its weight again."""
    if (held := _held_weights.get()) is not None:
        held.clear()


def quantized(values: torch.Tensor, quantizer: Quantizer, dtype: torch.dtype | None) -> Quantized:
    """Codes in `dtype`, or dequantized values where it is None; without a gradient."""
    if dtype is not None:
        return integers(quantizer, values, dtype)
    fake, peak = quantizer.fake(values)
    return fake, None, peak


def quantized_input(values: torch.Tensor, quantizer: Quantizer, dtype: torch.dtype | None) -> Quantized:
    """`quantized(values, quantizer, dtype)`, or what the same tensor gave just before."""
    if not _tells_changes(values) or (room := _room.get()) is None:
        return quantized(values, quantizer, dtype)
    key, kept = _key(values, quantizer, dtype), room.kept
    if kept is None or kept[0]() is not values or kept[1] != key:
        kept = room.kept = (weakref.ref(values), key, quantized(values, quantizer, dtype))
    return kept[2]


def quantized_weight(weight: torch.Tensor, quantizer: Quantizer, dtype: torch.dtype | None) -> Quantized:
    """`quantized(weight, quantizer, dtype)`, or what is held."""
    if not _tells_changes(weight) or (weights := _held_weights.get()) is None:
        return quantized(weight, quantizer, dtype)
    key = _key(weight, quantizer, dtype)
    # A convolution's weight comes as a view, a new one every time.
    owner = weight if weight._base is None else weight._base
    held = weights.get(owner)
    if held is None or held[1] != key:
        # The alias keeps the weight's memory: given new values elsewhere, they could land at the same address.
        held = weights[owner] = (weight.detach(), key, quantized(weight, quantizer, dtype))
    return held[2]


def _tells_changes(values: torch.Tensor) -> bool:
    """Whether a result may be kept: inference tensors count no changes, and what is traced has no values yet."""
    return not (torch.compiler.is_compiling() or values.is_inference() or torch.is_inference_mode_enabled())


def _key(values: torch.Tensor, quantizer: Quantizer, dtype: torch.dtype | None) -> tuple:
    """What a result depends on; `module.to(...)` moves a parameter without counting it as a change."""
    return quantizer, dtype, values._version, values.dtype, values.device, values.data_ptr()
