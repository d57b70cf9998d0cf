"""The table of quantizers: the name in a recipe, and the class.

A class says itself which widths it serves, and takes those of the settings that it has arguments for.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import TrituneError, check_new_name, shown
from .binary import Binary
from .clipped_uniform import ClippedUniform
from .dorefa import DoReFa
from .elastic import ElasticBinary
from .lsq import LearnedStep
from .min_max import MinMax, MovingMinMax
from .pact import LearnedClip
from .quantizer import Quantizer
from .quaternary import Quaternary
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
    "quaternary": Quaternary,
    "bwn": Binary,
    "elastic_binary": ElasticBinary,
    "seq": StretchedElastic,
}
_SHIPPED = tuple(QUANTIZERS)
Kind = TypeVar("Kind", bound=type[Quantizer])


def register_quantizer(name: str, *, exist_ok: bool = False) -> Callable[[Kind], Kind]:
    """Class decorator: a quantizer of one's own under a name, for `weight_quantizer` and its like in a recipe.

    The class is a subclass of `Quantizer` that says which `weight_bits` and `activation_bits` it serves. A checkpoint
    names its quantizers, so whatever loads one registers them first.

    Args:
        name: letters, digits and underscores; of none that ships.
        exist_ok: replace one registered before, as a notebook does that runs a cell again.

    Raises:
        TrituneError: the name is taken, or the class is no quantizer.
    """

    def register(kind: Kind) -> Kind:
        where = "register_quantizer"
        check_new_name(where, name, _SHIPPED if exist_ok else QUANTIZERS)
        if not (isinstance(kind, type) and issubclass(kind, Quantizer)):
            raise TrituneError(f"{where}: {name} must be a subclass of tritune.quant.Quantizer; got {shown(kind)}")
        if not (kind.weight_bits or kind.activation_bits):
            raise TrituneError(f"{where}: {name} must serve some weight_bits or activation_bits")
        QUANTIZERS[name] = kind
        return kind

    return register


def quantizer_names(of: str) -> list[str]:
    """The names of those that serve `weight`s or `activation`s."""
    return [name for name, kind in QUANTIZERS.items() if getattr(kind, f"{of}_bits")]


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
