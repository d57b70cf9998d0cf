"""The precision of a training: what `bf16: auto` becomes, and checks of the device."""

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
    """The recipe with `bf16: auto` resolved; `begun` is the folder of a run that is resumed.

    Raises:
        TrituneError: the recipe in `begun` is not YAML.
    """
    return recipe.settled(takes_bf16(begun)) if recipe.bf16 == AUTO else recipe


def takes_bf16(begun: Path | None = None) -> bool:
    """What `bf16: auto` stands for: as in the run in `begun`, else whether bf16 is faster on this device.

    The main process decides for all: with two precisions they would not train one model.
    """
    process = this_process()
    decided: list[bool | None] = [None]
    if process.is_main_process:
        path = None if begun is None else recipe_beside(begun)
        kept = None if path is None else parse(path.read_text(encoding="utf-8"), str(path)).get("bf16")
        decided = [kept if isinstance(kept, bool) else multiplies_bf16(process.device)]
    return broadcast_object_list(decided)[0]


def check_precision(bf16: bool, fp16: bool, device: torch.device) -> None:
    """Warn once if bf16 is slower than float32 on this device.

    Raises:
        TrituneError: for fp16 on a CPU, where accelerate would silently compute in float32.
    """
    if fp16 and device.type == "cpu":
        raise TrituneError("fp16: a CPU cannot train in float16; use bf16, or a GPU")
    if bf16 and device.type in ("cpu", "cuda") and not multiplies_bf16(device) and this_process().is_local_main_process:
        _warn_of_bf16(device.type)


@cache
def _warn_of_bf16(kind: str) -> None:
    warnings.warn(
        f"bf16: this {'GPU' if kind == 'cuda' else 'processor'} has no bfloat16 multiplication, which makes training "
        "two to ten times slower than in float32; bf16: auto chooses float32 here",
        stacklevel=2,
    )
