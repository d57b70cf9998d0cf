"""A function as a method of one object, instead of the method of its class."""

import copy
import inspect
import weakref
from collections.abc import Callable
from types import CodeType
from typing import Any


def give_method(model: Any, function: Callable) -> None:
    """Let `function`, which takes the model first, be the method of its name of this one model."""
    setattr(model, function.__name__, OwnMethod(function, model))


class OwnMethod:
    """A function as a method of one model.

    It does not keep its model alive: a circle of references would keep the memory of a model that nobody has any more.
    In `load(folder).save_pretrained(other)` the model itself is gone before the call; its twin, a shallow copy without
    such methods, shares all of its parts and is taken instead.

    Args:
        function: takes the model, and then what the method takes.
        model: whose method it becomes.
        twin: of the model; None makes one.
    """

    def __init__(self, function: Callable, model: Any, twin: Any = None):
        if twin is None:
            twin = copy.copy(model)
            for name in [name for name, value in vars(twin).items() if isinstance(value, OwnMethod)]:
                del vars(twin)[name]
        self.function, self.model, self.twin = function, weakref.ref(model), twin

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns of the model, or of its twin where the model is gone."""
        return self.function(self.model() or self.twin, *args, **kwargs)

    def __reduce__(self) -> tuple:  # for deepcopy and pickle: the copy's method is the copy's
        return OwnMethod, (self.function, self.model() or self.twin, self.twin)

    @property
    def __code__(self) -> CodeType:  # by which torch.export names the graph of a `forward`
        return self.function.__code__

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(getattr(type(self.twin), self.function.__name__).__get__(self.twin))
