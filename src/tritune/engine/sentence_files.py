"""What lies beside a sentence encoder: the files by which sentence-transformers knows pooling and normalization."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import TrituneError, shown
from .pooling import MODES

MODULES = "modules.json"
# Of the Transformer module; older versions named it after the family.
_FAMILIES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_OPTIONS = "config_sentence_transformers.json"
_CONFIGS = tuple(f"sentence_{family}_config.json" for family in _FAMILIES)
# The keys by which older versions switch a mode on, in the order in which several are put side by side.
_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# The bytes of a file by its path in the model's folder; None if it is not there.
Content = Callable[[str], bytes | None]


@dataclass(frozen=True)
class Settings:
    """How a model makes embeddings of hidden states.

    Attributes:
        modes: names of `pooling.MODES`; what several of them give is put side by side.
        normalize: whether an embedding is then scaled to length 1.
        width: of the hidden states, as the files say; None if they do not.
        max_length: tokens that are read of a text; None if the files do not say.
        contents: path in the folder to the bytes of every file that sentence-transformers needs beside the model; empty
            where the model has none.
    """

    modes: tuple[str, ...] = ("mean",)
    normalize: bool = False
    width: int | None = None
    max_length: int | None = None
    contents: Mapping[str, bytes] = field(default_factory=dict)


def read_settings(source: object, content: Content) -> Settings:
    """The files of a model, which messages call `source`; the defaults where there are none.

    Raises TrituneError, naming file and key, if a file is broken or asks for something that is not supported.
    """
    modules = content(MODULES)
    if modules is None:
        return Settings()
    contents = {MODULES: modules}
    names = []
    for number, module in enumerate(_json(source, MODULES, modules, list)):
        name, path = _module(module, f"{source}/{MODULES}, module {number}")
        names.append(name)
        if name != "Transformer" and (found := content(f"{path}/config.json")) is not None:
            contents[f"{path}/config.json"] = found
        if name == "Pooling":
            pooling_file = f"{path}/config.json"
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise TrituneError(
            f"{source}/{MODULES}: the modules are {', '.join(names) or 'none'}; only Transformer, Pooling and, "
            "optionally, Normalize are supported"
        )
    if pooling_file not in contents:
        raise TrituneError(f"{source}/{pooling_file} is missing; it says how tokens are pooled")
    config, where = _json(source, pooling_file, contents[pooling_file], dict), f"{source}/{pooling_file}"
    options = {name: found for name in (_OPTIONS, *_CONFIGS) if (found := content(name)) is not None}
    values = {f"{source}/{name}": _json(source, name, found, dict) for name, found in options.items()}
    return Settings(
        modes=_modes(config, where),
        normalize=names[-1] == "Normalize",
        width=_number(config, where, "embedding_dimension", "word_embedding_dimension"),
        max_length=_max_length(values),
        contents=contents | options,
    )


def _module(module: Any, where: str) -> tuple[str, str]:
    """The name and the path of a module."""
    kind, path = (module.get(key) if isinstance(module, dict) else None for key in ("type", "path"))
    if not isinstance(kind, str) or not isinstance(path, str):
        raise TrituneError(f"{where}: must have a type and a path")
    name = kind.rpartition(".")[-1]
    if name not in ("Transformer", "Pooling", "Normalize") or not kind.startswith("sentence_transformers."):
        raise TrituneError(
            f"{where}: type {shown(kind)} is not known; only Transformer, Pooling and Normalize are supported"
        )
    if name == "Transformer" and path:
        raise TrituneError(f"{where}: the model is in {shown(path)}; save it again with sentence-transformers")
    # A run writes to this path.
    if name != "Transformer" and not re.fullmatch(r"\w[\w-]*", path):
        raise TrituneError(f"{where}: path {shown(path)} must be the name of a folder")
    return name, path


def _modes(config: dict[str, Any], where: str) -> tuple[str, ...]:
    """The pooling modes that a Pooling config names, in the one spelling or the other."""
    if "pooling_mode" in config:
        given = config["pooling_mode"]
        modes = [given] if isinstance(given, str) else given
        if not isinstance(modes, list) or not modes or any(mode not in MODES for mode in modes):
            raise TrituneError(f"{where}: pooling_mode {shown(given)}; known are {', '.join(MODES)}")
        return tuple(modes)
    for key, value in config.items():
        if key.startswith("pooling_mode_") and (key not in _SWITCHES or not isinstance(value, bool)):
            raise TrituneError(f"{where}: {key}: {shown(value)}; known are {', '.join(_SWITCHES)}, true or false")
    return tuple(mode for key, mode in _SWITCHES.items() if config.get(key)) or ("mean",)


def _max_length(options: dict[str, dict[str, Any]]) -> int | None:
    """Of further files, of which some settings would change what the model is given to read."""
    for where, config in options.items():
        for key in ("default_prompt_name", "do_lower_case"):
            if config.get(key):
                raise TrituneError(f"{where}: {key}: {shown(config[key])} is not supported; texts are read as is")
    found = (_number(config, where, "max_seq_length") for where, config in options.items())
    return next(filter(None, found), None)


def _number(config: dict[str, Any], where: str, *keys: str) -> int | None:
    """The first of some keys that holds something."""
    for key in keys:
        if (number := config.get(key)) is not None:
            if type(number) is not int:
                raise TrituneError(f"{where}: {key} must be a whole number; got {shown(number)}")
            return number
    return None


def _json(source: object, name: str, content: bytes, kind: type) -> Any:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise TrituneError(f"{source}/{name}: not a JSON {'list' if kind is list else 'object'}; download it again")
    return value
