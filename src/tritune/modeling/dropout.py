"""Which modules drop something at random in training, so that a student can be trained without that."""

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from .attention import STATE_ATTRIBUTE


def dropping_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The modules of an instrumented model that drop something in training mode; in evaluation mode they do not.

    They are dropout modules, attention modules, which hand a rate to the attention function in training mode, and
    modules with a rate of their own, such as those of stochastic depth. The model itself is never among them: its mode
    says whether it is trained at all.
    """
    return [
        module
        for module in model.modules()
        if module is not model
        and (isinstance(module, _DropoutNd) or hasattr(module, STATE_ATTRIBUTE) or _has_rate(module))
    ]


def _has_rate(module: nn.Module) -> bool:
    """Whether a module has a number of its own that says how much it drops."""
    return any("drop" in name and isinstance(value, float) and value > 0 for name, value in vars(module).items())
