"""What one may choose of a distillation by name: losses, layers, averages; to be checked without importing torch."""

import math
import re
from collections.abc import Sequence
from typing import Any

from ..errors import OWN, TrituneError, shown

# The rows of `distil.losses.LOSSES`.
LOSS_NAMES = (
    "logits",
    "token_scaled_logits",
    "hidden_states",
    "attention_scores",
    "attention_map",
    "block_output",
    "context",
    "projection",
    "ground_truth",
    "embedding",
)
# Those of a user's own, by `distil.losses.register_loss`; rows of that table, too.
REGISTERED_LOSSES: dict[str, Any] = {}
TASK_LOSS = "ground_truth"
AVERAGES = ("padded", "valid")
ALL_LAYERS = "all"


def check_loss(name: str, teacher: object | None, average: str = "padded") -> None:
    """Check that a loss can be computed; of the teacher it only matters whether there is one.

    Raises:
        TrituneError: loss or average are unknown, or a distillation loss has no teacher.
    """
    known = (*LOSS_NAMES, *REGISTERED_LOSSES)
    if name not in known:
        raise TrituneError(f"unknown loss {shown(name)}; known are {', '.join(known)}{OWN}")
    if average not in AVERAGES:
        raise TrituneError(f"unknown average {shown(average)}; known are {', '.join(AVERAGES)}")
    if name != TASK_LOSS and teacher is None:
        raise TrituneError(f"the loss {name} compares with a teacher: give one, or take {TASK_LOSS}")


def keep_loss(name: str, loss: Any) -> None:
    """Add a row of the table of losses; for `register_loss`, which has checked it."""
    REGISTERED_LOSSES[name] = loss


def check_registered(name: str) -> None:
    """Raise TrituneError for a name under which nobody has registered a loss."""
    if name in LOSS_NAMES:
        raise TrituneError(f"losses: {name} ships with tritune; its key is {name}_coefficient")
    if name not in REGISTERED_LOSSES:
        registered = ", ".join(REGISTERED_LOSSES) or "none"
        raise TrituneError(f"losses: unknown loss {shown(name)}; registered are {registered}{OWN}")


def check_distil_layers(choice: str | Sequence[int]) -> None:
    """Raise TrituneError for a `distil_layers` that no model could follow."""
    if isinstance(choice, str):
        if choice not in (ALL_LAYERS, "last") and not re.fullmatch(r"every-([2-9]|[1-9][0-9]{1,3})", choice):
            raise TrituneError(f"distil_layers must be all, last, every-2 (-3, -4, …) or a list; got {shown(choice)}")
    elif not choice or min(choice) < 0 or len(set(choice)) < len(choice):
        raise TrituneError(f"distil_layers must name layers once each, counted from 0; got {shown(list(choice))}")


def check_temperature(temperature: float, regression: bool) -> None:
    """Raise TrituneError for a temperature that is not a positive number, or that a regression would not notice."""
    if not 0 < temperature < math.inf:
        raise TrituneError(f"temperature must be a positive number; got {temperature}")
    if regression and temperature != 1:
        raise TrituneError("temperature would change nothing: regression compares scores, not probabilities")
