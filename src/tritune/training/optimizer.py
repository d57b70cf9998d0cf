"""The optimizer of the published recipes: Adam as the first BERT release had it.

No bias correction, decoupled weight decay, every parameter's gradient clipped by itself, and the learning-rate schedule
inside, counted per parameter. The last point matters here: while the teacher stands in for a layer's context, V and W_O
get no gradient, and when they finally do, they begin their own warm-up. torch's AdamW with an outside schedule takes
steps 3 to 6 times smaller over the first sixty updates, which is most of step one.
"""

from collections.abc import Callable, Iterable

import torch
from torch.optim.adamw import adamw

# torch's kernel makes one pass over parameter, gradient and moments. After so many steps its bias correction is 1.
_NO_BIAS = 1e9


class BertAdam(torch.optim.Optimizer):
    """Adam without bias correction, with a per-parameter warm-up and linear decay.

    With s the updates a parameter has had and T = `total_steps`, its rate is lr * (s/T) / warmup while s/T < warmup,
    else lr * (1 - s/T) / (1 - warmup). A parameter whose gradient is None is left alone entirely: no moments, no decay,
    no step counted.

    Args:
        params: parameters or groups, as for any torch optimizer; a group may set its own `weight_decay`.
        lr: the peak learning rate.
        total_steps: updates that the schedule spans.
        warmup: the fraction of them spent warming up.
        betas: decay rates of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay, times the current rate.
        max_grad_norm: each parameter tensor's gradient is clipped to this norm by itself; 0 turns it off.

    Raises:
        ValueError: `total_steps` is below 1 or `warmup` outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable,
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

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """Update every parameter that has a gradient; returns the closure's loss if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        adamw(
            [parameter],
            [_clipped(parameter.grad, group["max_grad_norm"])],
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
    # Only on a CPU is a look at a value free; elsewhere it would stall the queue.
    return gradient if gradient.is_cpu and factor == 1 else gradient * factor


def learning_rate(peak: float, step: int, total_steps: int, warmup: float) -> float:
    """The rate of the update number `step` (from 0): linear warm-up, then linear decay to zero.

    >>> [round(learning_rate(1.0, step, 10, 0.2), 3) for step in (0, 1, 2, 9)]
    [0.0, 0.5, 1.0, 0.125]
    """
    progress = step / total_steps
    if progress < warmup:
        return peak * progress / warmup
    return peak * max(0.0, 1 - progress) / (1 - warmup)
