"""tritune: fine-tuned Transformers with ternary weights and 8-bit activations.

    import tritune
    student = tritune.prepare(model)

Importing it registers the attention implementation and the checkpoint plug-in with transformers, so that Auto classes
load what tritune saved.
"""

from .checkpoint import TrituneConfig
from .errors import TrituneError, UnsupportedModelError
from .instrument import instrument
from .prepare import prepare
from .quantization import Quantization
from .trace import Intervention, LayerTrace, ModelTrace, Site

__version__ = "0.1.0"

__all__ = [
    "Intervention",
    "LayerTrace",
    "ModelTrace",
    "Quantization",
    "Site",
    "TrituneConfig",
    "TrituneError",
    "UnsupportedModelError",
    "instrument",
    "prepare",
]
