"""Which parameters an analysis changes, and how they are restored."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import nn

from ..checkpoints.plugin import is_packed
from ..errors import TrituneError, shown

Parameters = Mapping[str, torch.Tensor]


def select_parameters(model: nn.Module, patterns: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """The parameters whose names match one of the patterns, in the model's order; all of them without a pattern.

    Args:
        model: whose parameters; for QAT models these are the latent weights.
        patterns: shell-style wildcards, such as `*.query.*`.

    Raises:
        TrituneError: a pattern matches nothing, or the model is packed.

    >>> list(select_parameters(nn.Linear(2, 2), ["*b?as"]))
    ['bias']
    """
    if is_packed(model):
        raise TrituneError("a packed model has no latent weights to move; use the run it was converted from")
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            raise TrituneError(
                f"no parameter is called {shown(pattern)}; there are {len(parameters)}, "
                f"{shown(next(iter(parameters), ''))} the first of them"
            )
    if not patterns:
        return parameters
    return {name: p for name, p in parameters.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}


@contextmanager
def differentiated(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within the context these parameters of `model` require a gradient and no others do."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)


@contextmanager
def restored(parameters: Parameters) -> Iterator[dict[str, torch.Tensor]]:
    """Within the context parameters may be changed; afterwards they are restored bit for bit, even after an error.

    Yields:
        Copies of the values that come back, by name.
    """
    origin = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        yield origin
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(origin[name])
