"""tritune: fine-tuned Transformers with ternary weights and 8-bit activations.

    import tritune

    student = tritune.prepare(model)
    trainer = tritune.DistillationTrainer(model=student, teacher=teacher, args=args, train_dataset=data)
    trainer.train()
    student.save_pretrained("run")
    tritune.convert(student).save_pretrained("small")

Once it is imported, before transformers or after, Auto classes load what tritune saved. Names load when they are used:
importing tritune imports neither torch nor transformers.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import plugin

if TYPE_CHECKING:
    from .checkpoint import TrituneConfig
    from .convert import convert
    from .errors import TrituneError, UnsupportedModelError
    from .instrument import instrument
    from .load import load
    from .prepare import prepare
    from .quantization import Quantization
    from .shrink import shrink
    from .sites import Site
    from .trace import Intervention, LayerTrace, ModelTrace
    from .training.trainer import DistillationTrainer

__version__ = "0.1.0"

__all__ = [
    "DistillationTrainer",
    "Intervention",
    "LayerTrace",
    "ModelTrace",
    "Quantization",
    "Site",
    "TrituneConfig",
    "TrituneError",
    "UnsupportedModelError",
    "convert",
    "instrument",
    "load",
    "prepare",
    "shrink",
]

# The module of every name that is not that of its own module.
_HOMES = {
    "DistillationTrainer": "training.trainer",
    "Intervention": "trace",
    "LayerTrace": "trace",
    "ModelTrace": "trace",
    "Quantization": "quantization",
    "Site": "sites",
    "TrituneConfig": "checkpoint",
    "TrituneError": "errors",
    "UnsupportedModelError": "errors",
}


class _Package(ModuleType):
    """A package whose functions are not hidden by modules of the same name, as `convert` is in `convert.py`."""

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing a submodule sets it as an attribute of its package.
        if name in __all__ and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES.get(name, name)}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Package
plugin.install()
