"""Evaluation mode for a while, with every module's own mode coming back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Within the context all modules of `models` are in evaluation mode; a frozen submodule's mode is not lost.

    Modules that are in evaluation mode already are not touched, so threads may share a model that is. One that is being
    trained belongs to its training.
    """
    training = [module for model in models for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
