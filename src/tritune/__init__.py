"""tritune: fine-tuned Transformers with ternary weights and 8-bit activations.

    import tritune

    student = tritune.prepare(model)
    trainer = tritune.DistillationTrainer(model=student, teacher=teacher, args=args, train_dataset=data)
    trainer.train()
    student.save_pretrained("run")
    tritune.convert(student).save_pretrained("small")

Importing it registers the attention implementation and the checkpoint plug-in with transformers, so that Auto classes
load what tritune saved.
"""

from typing import Any

from .checkpoint import TrituneConfig
from .convert import convert
from .errors import TrituneError, UnsupportedModelError
from .instrument import instrument
from .load import load
from .prepare import prepare
from .quantization import Quantization
from .shrink import shrink
from .trace import Intervention, LayerTrace, ModelTrace, Site

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


def __getattr__(name: str) -> Any:
    # Loading a checkpoint must not wait for the imports that training needs.
    if name == "DistillationTrainer":
        from .training.trainer import DistillationTrainer

        return DistillationTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
