"""Quantizers, one per file: floor 0, torch only.

Begin with `quantizer.py`, what every one of them can do, then `ternary.py`; `registry.py` is the table of their names.
"""

from .binary import Binary
from .calibrated import Calibrated, Learned, StoredCodes
from .clipped_uniform import ClippedUniform
from .dorefa import DoReFa
from .elastic import ElasticBinary
from .granularity import Granularity
from .lsq import LearnedStep
from .min_max import MinMax, MovingMinMax
from .own_graph import OwnGraph
from .pact import LearnedClip
from .parts import GraphRowParts, RowParts, in_parts
from .quantizer import Quantizer
from .quaternary import Quaternary
from .registry import (
    QUANTIZERS,
    arguments_of,
    default_weight_quantizer,
    make_quantizer,
    quantizer_names,
    register_quantizer,
)
from .seq import StretchedElastic
from .ste import straight_through
from .ternary import LeastSquaresTernary, Ternary, ternarize, ternarize_least_squares
from .uniform import Uniform

__all__ = [
    "QUANTIZERS",
    "Binary",
    "Calibrated",
    "ClippedUniform",
    "DoReFa",
    "ElasticBinary",
    "Granularity",
    "GraphRowParts",
    "Learned",
    "LearnedClip",
    "LearnedStep",
    "LeastSquaresTernary",
    "MinMax",
    "MovingMinMax",
    "OwnGraph",
    "Quantizer",
    "Quaternary",
    "RowParts",
    "StoredCodes",
    "StretchedElastic",
    "Ternary",
    "Uniform",
    "arguments_of",
    "default_weight_quantizer",
    "in_parts",
    "make_quantizer",
    "quantizer_names",
    "register_quantizer",
    "straight_through",
    "ternarize",
    "ternarize_least_squares",
]
