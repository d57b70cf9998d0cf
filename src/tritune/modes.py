"""Evaluation mode for a while, with every module's own mode coming back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Within the context all modules of `models` are in evaluation mode; a frozen submodule's mode is not lost."""
    training = {module: module.training for model in models for module in model.modules()}
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
