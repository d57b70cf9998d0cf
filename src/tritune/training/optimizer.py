"""The optimizer of the published recipes: Adam as in the first BERT release.

No bias correction, decoupled weight decay, per-tensor gradient clipping, and a built-in learning-rate schedule that is
counted per parameter. The last point matters here: while the teacher's context is plugged in, V and W_O get no
gradient, and when they finally do, they start their own warm-up. torch's AdamW with an external schedule takes steps 3
to 6 times smaller over the first sixty updates, which is most of step one.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch.optim.adamw import adamw

# torch's fused kernel makes one pass over all tensors. After so many steps its bias correction is 1.
_NO_BIAS = 1e9


class BertAdam(torch.optim.Optimizer):
    """Adam without bias correction, with warm-up and linear decay per parameter.

    With s the number of updates of a parameter and T = `total_steps`, its rate is lr * (s/T) / warmup while s/T <
    warmup, else lr * (1 - s/T) / (1 - warmup). A parameter whose gradient is None is skipped entirely: no moments, no
    decay, no step counted.

    Args:
        params: parameters or groups, as for any torch optimizer; a group may set its own `weight_decay`.
        lr: peak learning rate.
        total_steps: number of updates of the schedule.
        warmup: fraction of them used for warm-up.
        betas: decay rates of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay, times the current rate.
        max_grad_norm: maximum norm of each parameter tensor's gradient; 0 disables clipping.

    Raises:
        ValueError: `total_steps` is below 1 or `warmup` outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-5,
        *,
        total_steps: int,
        warmup: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
    ):
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {warmup}")
        defaults = {
            "lr": lr,
            "total_steps": total_steps,
            "warmup": warmup,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient; returns the closure's loss if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        adamw(
            [parameter],
            [_clipped(gradient, group["max_grad_norm"])],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [torch.full((), _NO_BIAS, device=parameter.device)],
            fused=True,
            lr=learning_rate(group["lr"], state["step"], group["total_steps"], group["warmup"]),
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            amsgrad=False,
            maximize=False,
        )
        state["step"] += 1


def _clipped(gradient: torch.Tensor, max_norm: float) -> torch.Tensor:
    """`gradient`, or a copy of it shrunk to `max_norm`."""
    if not max_norm:
        return gradient
    factor = (max_norm / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp(max=1.0)
    # Reading a value is free on a CPU only; elsewhere it would synchronize.
    return gradient if gradient.is_cpu and factor == 1 else gradient * factor


def learning_rate(peak: float, step: int, total_steps: int, warmup: float) -> float:
    """Learning rate of update `step` (from 0): linear warm-up, then linear decay to zero.

    >>> [round(learning_rate(1.0, step, 10, 0.2), 3) for step in (0, 1, 2, 9)]
    [0.0, 0.5, 1.0, 0.125]
    """
    progress = step / total_steps
    if progress < warmup:
        return peak * progress / warmup
    return peak * max(0.0, 1 - progress) / (1 - warmup)
