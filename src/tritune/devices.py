"""The process among its peers: which device is its own, and whether it is the one that writes."""

import torch
from accelerate import PartialState


def this_process() -> PartialState:
    """Join the processes of torchrun or accelerate launch, over gloo where there is no accelerator."""
    return PartialState(cpu=not torch.accelerator.is_available())
