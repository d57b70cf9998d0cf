"""Rare classes that count as much as frequent ones: by the weight of their rows, or by how often they come."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.utils.class_weight import compute_class_weight
from torch.utils.data import Sampler

from .job import Job


def class_weights(labels: Sequence[int], classes: int) -> list[float]:
    """The weight of each class, rows / (classes * rows of the class), as scikit-learn's `balanced`; 1 without rows.

    Their mean over the rows is 1, so a loss keeps its size.

    Args:
        labels: class ids of the training rows.
        classes: how many there are; those without rows do not count.

    >>> class_weights([0, 0, 0, 1], 3)
    [0.6666666666666666, 2.0, 1.0]
    """
    present = np.unique(labels)
    weights = np.ones(classes)
    weights[present] = compute_class_weight("balanced", classes=present, y=np.asarray(labels))
    return weights.tolist()


class BalancedSampler(Sampler[int]):
    """As many rows of every class in an epoch of the usual length, give or take one, in random order.

    The rows of a class come in turns: none comes again before all have come. The order is a function of (seed, epoch)
    and of nothing else, so it is that of every process, and of a training that was stopped. `epoch` is that of the
    visits to come, see `EpochOf`.

    Args:
        labels: class ids of the rows; at least one.
        seed: of the order.
    """

    def __init__(self, labels: Sequence[int], seed: int):
        ids = np.asarray(labels)
        self.rows = [np.flatnonzero(ids == one) for one in np.unique(ids)]
        self.length, self.seed, self.epoch = len(ids), seed, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng((self.seed, self.epoch))
        share = math.ceil(self.length / len(self.rows))
        turns = [[random.permutation(rows) for _ in range(math.ceil(share / len(rows)))] for rows in self.rows]
        # One of every class, one more of every class: what is cut off at the end is one of some classes, by chance.
        columns = np.stack([np.concatenate(of)[:share] for of in turns])
        random.shuffle(columns[:, -1])
        return iter(random.permutation(columns.T.ravel()[: self.length]).tolist())


def balance_arguments(job: Job, data_seed: int) -> dict[str, Any]:
    """The arguments of a `HeadTrainer` by the recipe's `balance`; none where nothing is balanced."""
    if job.recipe.balance == "none":
        return {}
    labels = job.data.splits["train"]["labels"]
    if job.recipe.balance == "weights":
        return {"class_weights": class_weights(labels, job.task.num_labels)}
    return {"sampler": BalancedSampler(labels, data_seed)}
