"""The native engine under a packed model of transformers.

    model = tritune.load("small/")
    model.engine                    # "native": the whole encoder runs in the engine

A model keeps its class, its modules and its methods. What is attached takes a call where it answers with the same
meaning, and leaves every other one to torch: an `Encoder` calls of the whole model, and a `Product` those of a packed
Linear.

Neither is ever stale: each compares, on every call, the tensors and modules that it was made of. It cannot see a change
that autograd does not count, such as `weight.data.mul_(2)`. Copies of a model, by `deepcopy` or pickle, run in torch.
"""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..engine.binding import isa_wanted, isas, why_not
from ..engine.integrity import read_packed
from ..engine.model import Model
from ..errors import TrituneError, shown
from ..modeling.own_method import give_method
from .native_encoder import Encoder
from .native_product import Product, can_be_native
from .packed import PackedLinear

NATIVE, PRODUCTS, REFERENCE = "native", "native products", "reference"
CHOICES = (NATIVE, REFERENCE)
VARIABLE = "TRITUNE_ENGINE"
_ENCODER = "_tritune_encoder"


class Engine(str):
    """A word for what runs a model: `native`, `native products` or `reference`; of a copied model it is `reference`."""

    def __reduce__(self) -> tuple:
        return Engine, (REFERENCE,)


def attach(model: PreTrainedModel, folder: Path, choice: str | None = None) -> None:
    """Give a packed model the engine, and the attribute `engine`, a word for what runs it.

    `native`: the whole encoder, in the engine. `native products`: torch's modules, those packed Linears in the engine
    that have weights of 2 bits and inputs with a scale per token; the same bits as `reference`: torch alone.

    Args:
        model: as it was loaded, in any place and precision.
        folder: that it was loaded from.
        choice: one of `CHOICES`; None takes what the environment variable `TRITUNE_ENGINE` names, or else the best.

    Raises:
        TrituneError: the choice is none, or is `native` and the engine does not run this model; the message says why.
    """
    choice = _checked(choice)
    vars(model)["engine"] = Engine(REFERENCE)
    if choice == REFERENCE:
        return
    reason = why_not() or _why_elsewhere(model) or (None if choice else _why_slower())
    if reason is None:
        vars(model)["engine"] = Engine(_with_products(model))
        try:
            packed = read_packed(folder)
            vars(model)[_ENCODER] = Encoder(model, Model(packed.config_bytes, packed.weights))
            packed.forget()
            give_method(model, forward)
            give_method(model, _replicate_for_data_parallel)
            vars(model)["engine"] = Engine(NATIVE)
        except TrituneError as error:
            reason = str(error)
    if choice == NATIVE and reason is not None:
        raise TrituneError(f"{folder}: the native engine does not run this model: {reason}")


def forward(model: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
    """As the model's class does it, or the engine where it answers the same."""
    if not torch.compiler.is_compiling() and (encoder := vars(model).get(_ENCODER)) is not None:
        output = encoder(model, args, kwargs)
        if output is not None:
            return output
    return type(model).forward(model, *args, **kwargs)


def _replicate_for_data_parallel(model: PreTrainedModel) -> PreTrainedModel:
    """A replica for another device, whose calls are its own: a method of one object goes along with the copy."""
    replica = type(model)._replicate_for_data_parallel(model)
    vars(replica).pop("forward", None)
    return replica


def _checked(choice: str | None) -> str | None:
    """The choice given, or else that of the environment."""
    where, chosen = ("engine", choice) if choice is not None else (VARIABLE, os.environ.get(VARIABLE) or None)
    if chosen is not None and chosen not in CHOICES:
        raise TrituneError(f"{where} must be one of {', '.join(CHOICES)}, or not be given; got {shown(chosen)}")
    return chosen


def _why_elsewhere(model: PreTrainedModel) -> str | None:
    """What keeps the engine from a model that is not as a plain `load` leaves it."""
    tensors = [*model.parameters(), *model.buffers()]
    if not all(tensor.is_cpu for tensor in tensors):
        return "it is not on the CPU"
    if model.dtype is not torch.float32:
        return f"it is in {str(model.dtype).removeprefix('torch.')}, not in float32"
    if any(tensor.is_inference() for tensor in tensors):
        return "it was loaded within torch.inference_mode"
    return None


def _why_slower() -> str | None:
    """Why torch is the better choice where nobody has made one."""
    if isa_wanted() is None and isas() == ["scalar"]:
        return "plain C++, which is all that runs on this processor, is slower than torch"
    return None


def _with_products(model: PreTrainedModel) -> str:
    """Give every packed Linear that can have one its native product; the word for what runs the model then."""
    linears = [m for m in model.modules() if isinstance(m, PackedLinear) and can_be_native(m)]
    for module in linears:
        module.native = Product(module)
    return PRODUCTS if linears else REFERENCE
