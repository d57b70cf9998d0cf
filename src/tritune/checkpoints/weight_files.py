"""How the weights of a model lie on disk: safetensors, or as older checkpoints and wrapped models have them."""

import json
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from ..errors import TrituneError

# What torch.compile and DistributedDataParallel put in front of every name, one or both.
_WRAPPING = re.compile(r"^(?:_orig_mod\.|module\.)+")


def reading_options(source: str | Path, config: PreTrainedConfig) -> dict[str, Any]:
    """How `from_pretrained` is to read the weights of a model.

    That is from safetensors. Of a float model that has none, from `pytorch_model.bin`, as long as it holds plain
    tensors: nothing else is unpickled, so no code can run.

    Raises:
        TrituneError: there are no weights, or they are declared to be in files of other names, which transformers would
            unpickle in any case.
    """
    _check_declared(source, config)
    is_quantized = getattr(config, "quantization_config", None) is not None
    is_folder = Path(source).is_dir()
    safe = (
        any(Path(source).glob("*.safetensors"))
        if is_folder
        else _has(source, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    )
    if not safe and not is_quantized and _has(source, WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        return {"use_safetensors": False, "weights_only": True}
    if is_folder and not safe:
        raise TrituneError("no model.safetensors; save weights in other formats as safetensors first")
    return {"use_safetensors": True}


def wrapping(missing: Collection[str], unexpected: Collection[str]) -> str | None:
    """What stands in front of the names of all weights, where a wrapped model was saved; else None.

    Args:
        missing: names that the model has and the files have not.
        unexpected: the reverse.
    """
    found = {match[0] if (match := _WRAPPING.match(name)) else "" for name in unexpected}
    return found.pop() or None if len(found) == 1 and missing else None


def _check_declared(source: str | Path, config: PreTrainedConfig) -> None:
    """Refuse names of other weight files, which transformers would unpickle in spite of `use_safetensors`."""
    named = getattr(config, "transformers_weights", None)
    names = [] if named is None else [named]
    with suppress(OSError):  # most models have no index
        if (index := cached_file(source, SAFE_WEIGHTS_INDEX_NAME)) is not None:
            names += json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
    for name in names:
        if not str(name).endswith(".safetensors"):
            raise TrituneError(f"its weights are declared to be in {name!r}; save them as safetensors")


def _has(source: str | Path, *names: str) -> bool:
    """Whether a folder or a hub repository has a file of one of these names."""
    missing_is_fine = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    return any(cached_file(source, name, **missing_is_fine) is not None for name in names)
