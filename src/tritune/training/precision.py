"""In which precision a training computes: what `bf16: auto` becomes, what is refused, and what is warned of."""

import warnings
from functools import cache
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list

from ..compute.devices import multiplies_bf16, this_process
from ..errors import TrituneError
from ..recipes import Kind, recipe_beside
from ..recipes.reader import parse
from ..recipes.recipe import AUTO


def settle(recipe: Kind, begun: Path | None = None) -> Kind:
    """The recipe with `bf16: auto` spelt out; any other is returned as it is.

    Args:
        recipe: resolved or not.
        begun: the folder of a run that goes on; None begins one.

    Raises:
        TrituneError: the recipe in `begun` is not YAML.
    """
    return recipe.settled(takes_bf16(begun)) if recipe.bf16 == AUTO else recipe


def takes_bf16(begun: Path | None = None) -> bool:
    """What `bf16: auto` stands for: what the run in `begun` computes in, else what this device multiplies faster.

    Of many processes the first one says it for all: with two precisions they would not train one model.
    """
    process, said = this_process(), [None]
    if process.is_main_process:
        kept = None if begun is None else _kept(begun)
        said = [multiplies_bf16(process.device) if kept is None else kept]
    return broadcast_object_list(said)[0]


def _kept(folder: Path) -> bool | None:
    """What the recipe of a run says, if there is one and it says either."""
    path = recipe_beside(folder)
    bf16 = None if path is None else parse(path.read_text(encoding="utf-8"), str(path)).get("bf16")
    return bf16 if isinstance(bf16, bool) else None


def check_precision(bf16: bool, fp16: bool, device: torch.device) -> None:
    """Warn of bf16 where it is slower than float32, once.

    Raises:
        TrituneError: for fp16 on a CPU, where accelerate would silently compute in float32.
    """
    if fp16 and device.type == "cpu":
        raise TrituneError("fp16: a CPU does not train in float16; take bf16, or a GPU")
    if bf16 and device.type in ("cpu", "cuda") and not multiplies_bf16(device) and this_process().is_local_main_process:
        _warn_of_bf16(device.type)


@cache
def _warn_of_bf16(kind: str) -> None:
    warnings.warn(
        f"bf16: this {'GPU' if kind == 'cuda' else 'processor'} has no instructions that multiply bfloat16, which "
        "makes training two to ten times slower than in float32; bf16: auto begins a run in float32 here",
        stacklevel=2,
    )
