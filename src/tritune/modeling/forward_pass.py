"""What one forward pass of one model records, replaces and shares, from the model's call to its return.

A model's modules are called by modelling code that is not ours and hands nothing of ours on. So the pass lies in a
context variable while the model's call runs: every thread has its own, and so has a model that is called inside a hook
of another. Nothing of a pass is kept on the model. Rejected: attributes of the model and globals, which threads
overwrite for each other; keyword arguments, which many families do not pass down to every layer.
"""

from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..compute.held import NewestInput, keep_newest_input
from ..errors import TrituneError
from .sites import Site
from .trace import Intervention, LayerTrace, ModelTrace


@dataclass(eq=False)
class ForwardPass:
    """One forward pass of one model.

    Attributes:
        owner: what the attention modules of the model have in common and those of other models have not.
        record: names of the `LayerTrace` fields to keep, each with the layers to keep it of; None for all.
        intervention: the teacher's tensors to plug in, or None.
        trace: where records go; None where nothing is recorded.
        layer: the layer that is being computed, counted by calls.
        calls: how often each attention module, by its state, was called, and each block.
        first_state: what the first block took, (batch, tokens, width), before anything replaced it; None if nothing
            does.
        outer: the pass during which this one began, inside a hook of its model; None otherwise.
        outer_input: where products kept their newest input before.
    """

    owner: object = None
    record: Mapping[str, Collection[int] | None] = field(default_factory=dict)
    intervention: Intervention | None = None
    trace: ModelTrace | None = None
    layer: int = -1
    calls: dict[Any, int] = field(default_factory=dict)
    first_state: torch.Tensor | None = None
    outer: "ForwardPass | None" = None
    outer_input: NewestInput | None = None

    def begin(self) -> None:
        """Put this pass in force; its products share their inputs."""
        self.outer, self.outer_input = _running.get(), keep_newest_input(NewestInput())
        _running.set(self)

    def end(self) -> None:
        """Put the outer pass back in force, if this one is, and let go of what only the inside of this one needs."""
        if _running.get() is self:
            _running.set(self.outer)
            keep_newest_input(self.outer_input)
        self.trace = self.first_state = self.outer = self.outer_input = None

    def enter(self, attention: Any, layers: tuple[int, ...]) -> None:
        """Count a call of an attention module, and point to the layer that it computes.

        Args:
            attention: the module's state.
            layers: that the module computes, in order of its calls.
        """
        self.layer = self.next_layer(attention, layers)
        if self.trace is not None:
            self.trace.layers.append(LayerTrace())

    def next_layer(self, called: Any, layers: tuple[int, ...]) -> int:
        """Count a call of what computes `layers`, in order of its calls; the layer that this one computes."""
        call = self.calls.get(called, 0)
        self.calls[called] = call + 1
        return layers[call % len(layers)]

    def keep(self, **tensors: torch.Tensor | None) -> None:
        """Store those of `tensors` that were asked for in the current layer's trace."""
        if self.trace is not None:
            for name in self.record.keys() & tensors.keys():
                layers = self.record[name]
                if layers is None or self.layer in layers:
                    setattr(self.trace.layers[self.layer], name, tensors[name])

    def replace(self, site: Site, own: torch.Tensor) -> torch.Tensor:
        """The teacher's tensor if `site` is in force, or the mixture that the intervention asks for; else `own`.

        Raises:
            TrituneError: the teacher's tensor has another shape, as that of another batch has.
        """
        if self.intervention is None or self.intervention.site is not site:
            return own
        teachers = self.intervention.tensor(self.layer)
        if teachers.shape != own.shape:
            raise TrituneError(
                f"the teacher's {site.field} of layer {self.layer} has shape {tuple(teachers.shape)}, the student's "
                f"{tuple(own.shape)}: the trace must be of the same batch and a model of the same shape"
            )
        weight = self.intervention.weight
        return teachers if weight == 1 else weight * teachers + (1 - weight) * own

    def again(self) -> "ForwardPass":
        """A copy that stands at this point of the pass, for computing what follows once more; it records nothing."""
        return replace(self, record={}, trace=None, first_state=None, calls=dict(self.calls))


_running: ContextVar[ForwardPass | None] = ContextVar("running", default=None)


def pass_of(owner: object) -> ForwardPass:
    """The pass in force if it is of the model with this `owner`; else an empty one, which records and replaces nothing.

    A part of a model that is called by itself, without the model, has no pass.
    """
    running = _running.get()
    return running if running is not None and running.owner is owner else ForwardPass(owner)


def checkpointed(checkpoint: Callable, function: Callable, *args: Any) -> Any:
    """`checkpoint(function, *args)`, whose second computation finds the pass of the first.

    The second one happens in the backward pass, after the model has returned, and on a GPU in another thread.

    Args:
        checkpoint: `torch.utils.checkpoint.checkpoint`, or what computes `function` now and in the backward pass too.
        function: a part of a model.
        *args: what it takes.
    """
    first = _running.get()
    if first is None:
        return checkpoint(function, *args)
    context, at_this_point = copy_context(), first.again()

    def computed(*args: Any) -> Any:
        """The function, the second time within a copy of the context of the first."""
        if _running.get() is first:
            return function(*args)

        def again() -> Any:
            """The function in a pass of its own, which may be computed again and again."""
            at_this_point.again().begin()
            return function(*args)

        return context.copy().run(again)

    return checkpoint(computed, *args)
