"""Training rows that change at every visit."""

import random
from collections.abc import Callable
from typing import Any

from torch.utils.data import Dataset
from transformers import TrainerCallback

Augment = Callable[[dict[str, Any], random.Random], dict[str, Any]]


class AugmentedRows(Dataset):
    """Rows as `augment` changes them; the change is a function of (seed, epoch, row) and of nothing else.

    So a training that was stopped sees, once resumed, what one that was never stopped sees, on however many devices.
    Rejected: the global generator, which Trainer restores as it was when a batch ahead was drawn already.

    `augment` takes a row and a generator made for it; `epoch` is that of the visits to come, see `EpochOf`.
    """

    def __init__(self, rows: Any, augment: Augment, seed: int):
        self.rows, self.augment, self.seed, self.epoch = rows, augment, seed, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.augment(self.rows[row], random.Random(f"{self.seed} {self.epoch} {row}"))


class EpochOf(TrainerCallback):
    """Tells rows, or a sampler of them, which epoch it is."""

    def __init__(self, rows: Any):
        self.rows = rows

    def on_epoch_begin(self, args, state, control, **kwargs):
        """A resumed training begins in the middle of one."""
        self.rows.epoch = int(state.epoch or 0)
