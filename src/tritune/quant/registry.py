"""The table of quantizers: the name in a recipe, and the class.

A class says itself which widths it serves, and takes those of the settings that it has arguments for.
"""

import inspect
from typing import Any

from .binary import Binary
from .clipped_uniform import ClippedUniform
from .dorefa import DoReFa
from .elastic import ElasticBinary
from .lsq import LearnedStep
from .min_max import MinMax, MovingMinMax
from .pact import LearnedClip
from .quantizer import Quantizer
from .seq import StretchedElastic
from .ternary import LeastSquaresTernary, Ternary
from .uniform import Uniform

QUANTIZERS: dict[str, type[Quantizer]] = {
    "twn": Ternary,
    "least_squares": LeastSquaresTernary,
    "uniform": Uniform,
    "min_max": MinMax,
    "moving_min_max": MovingMinMax,
    "clipped_uniform": ClippedUniform,
    "lsq": LearnedStep,
    "pact": LearnedClip,
    "dorefa": DoReFa,
    "bwn": Binary,
    "elastic_binary": ElasticBinary,
    "seq": StretchedElastic,
}
WEIGHT_QUANTIZERS = tuple(name for name, kind in QUANTIZERS.items() if kind.weight_bits)
ACTIVATION_QUANTIZERS = tuple(name for name, kind in QUANTIZERS.items() if kind.activation_bits)


def default_weight_quantizer(bits: int) -> str:
    """The quantizer of weights of so many bits where a recipe names none.

    >>> [default_weight_quantizer(bits) for bits in (1, 2, 4)]
    ['bwn', 'twn', 'uniform']
    """
    return {1: "bwn", 2: "twn"}.get(bits, "uniform")


def arguments_of(name: str) -> set[str]:
    """The settings that a quantizer uses.

    >>> sorted(arguments_of("twn"))
    ['clip', 'granularity', 'threshold_factor']
    """
    return set(inspect.signature(QUANTIZERS[name]).parameters)


def make_quantizer(name: str, **settings: Any) -> Quantizer:
    """A quantizer by its name in the table, from those of `settings` that it uses.

    >>> make_quantizer("uniform", bits=4, clip=1.0, threshold_factor=0.7)
    Uniform(bits=4, granularity=<Granularity.TENSOR: 'tensor'>, clip=1.0)
    """
    return QUANTIZERS[name](**{key: value for key, value in settings.items() if key in arguments_of(name)})
