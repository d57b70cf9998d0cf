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

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .checkpoints.registration import install

if TYPE_CHECKING:
    from .checkpoints.convert import convert
    from .checkpoints.load import load
    from .checkpoints.plugin import TrituneConfig
    from .checkpoints.prepare import prepare
    from .checkpoints.vocabulary import shrink_vocabulary
    from .compression.compress import compress
    from .distil.losses import register_loss
    from .distil.schedule import register_schedule
    from .errors import TrituneError, UnsupportedModelError
    from .modeling.instrument import instrument
    from .modeling.quantization import Quantization
    from .modeling.shrink import shrink
    from .modeling.sites import Site
    from .modeling.trace import Intervention, LayerTrace, ModelTrace
    from .quant import register_quantizer
    from .training.reconstruct import reconstruct
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
    "compress",
    "convert",
    "instrument",
    "load",
    "prepare",
    "reconstruct",
    "register_loss",
    "register_quantizer",
    "register_schedule",
    "shrink",
    "shrink_vocabulary",
]

# Where each public name lives.
_HOMES = {
    "DistillationTrainer": "training.trainer",
    "Intervention": "modeling.trace",
    "LayerTrace": "modeling.trace",
    "ModelTrace": "modeling.trace",
    "Quantization": "modeling.quantization",
    "Site": "modeling.sites",
    "TrituneConfig": "checkpoints.plugin",
    "TrituneError": "errors",
    "UnsupportedModelError": "errors",
    "compress": "compression.compress",
    "convert": "checkpoints.convert",
    "instrument": "modeling.instrument",
    "load": "checkpoints.load",
    "prepare": "checkpoints.prepare",
    "reconstruct": "training.reconstruct",
    "register_loss": "distil.losses",
    "register_quantizer": "quant",
    "register_schedule": "distil.schedule",
    "shrink": "modeling.shrink",
    "shrink_vocabulary": "checkpoints.vocabulary",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


install()
