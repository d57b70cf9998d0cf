"""Quantizers, one per file: floor 0, torch only."""

from .granularity import Granularity
from .quantizer import Quantizer
from .ste import straight_through
from .ternary import LeastSquaresTernary, Ternary, ternarize, ternarize_least_squares
from .uniform import Uniform

__all__ = [
    "Granularity",
    "LeastSquaresTernary",
    "Quantizer",
    "Ternary",
    "Uniform",
    "straight_through",
    "ternarize",
    "ternarize_least_squares",
]
