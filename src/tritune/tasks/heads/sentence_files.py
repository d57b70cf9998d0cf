"""What lies beside a sentence encoder: the files by which sentence-transformers knows pooling and normalization."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from ...checkpoints.hub import located
from ...errors import TrituneError, first_line, shown
from .pooling import POOLINGS, Pooling

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


@dataclass(frozen=True)
class SentenceFiles:
    """How a model folder makes embeddings of hidden states.

    Attributes:
        pooling: in force; the mean, as sentence-transformers takes it, where no file says anything.
        width: of the hidden states, as the files say; None if they do not.
        contents: path in the folder to the bytes of every file that sentence-transformers needs beside the model.
    """

    pooling: Pooling = field(default_factory=Pooling)
    width: int | None = None
    contents: Mapping[str, bytes] = field(default_factory=dict)

    def write(self, folder: str | Path) -> None:
        """Put the files into a folder."""
        for name, content in self.contents.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@dataclass(frozen=True)
class SentenceProcessor:
    """A tokenizer that is saved together with the files of a sentence encoder."""

    tokenizer: PreTrainedTokenizerBase
    files: SentenceFiles

    @property
    def padding_side(self) -> str:
        """The tokenizer's."""
        return self.tokenizer.padding_side

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer and files."""
        self.tokenizer.save_pretrained(folder)
        self.files.write(folder)


def read_sentence_files(source: str | Path) -> SentenceFiles:
    """The files of a model in a folder or on the hub; the defaults where there are none.

    Raises TrituneError, naming file and key, if a file is broken or asks for something that is not supported.
    """
    source = located(source)
    modules = _content(source, MODULES)
    if modules is None:
        return SentenceFiles()
    contents = {MODULES: modules}
    names = []
    for number, module in enumerate(_json(source, MODULES, modules, list)):
        name, path = _module(module, f"{source}/{MODULES}, module {number}")
        names.append(name)
        if name != "Transformer" and (content := _content(source, f"{path}/config.json")) is not None:
            contents[f"{path}/config.json"] = content
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
    pooling = Pooling(_modes(config, where), normalize=names[-1] == "Normalize")
    return SentenceFiles(pooling, _width(config, where), contents | _options(source))


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
        if not isinstance(modes, list) or not modes or any(mode not in POOLINGS for mode in modes):
            raise TrituneError(f"{where}: pooling_mode {shown(given)}; known are {', '.join(POOLINGS)}")
        return tuple(modes)
    for key, value in config.items():
        if key.startswith("pooling_mode_") and (key not in _SWITCHES or not isinstance(value, bool)):
            raise TrituneError(f"{where}: {key}: {shown(value)}; known are {', '.join(_SWITCHES)}, true or false")
    return tuple(mode for key, mode in _SWITCHES.items() if config.get(key)) or ("mean",)


def _width(config: dict[str, Any], where: str) -> int | None:
    for key in ("embedding_dimension", "word_embedding_dimension"):
        if (width := config.get(key)) is not None:
            if type(width) is not int:
                raise TrituneError(f"{where}: {key} must be a whole number; got {shown(width)}")
            return width
    return None


def _options(source: str | Path) -> dict[str, bytes]:
    """Further files, of which some settings would change what the model is given to read."""
    found = {name: content for name in (_OPTIONS, *_CONFIGS) if (content := _content(source, name)) is not None}
    for name, content in found.items():
        config = _json(source, name, content, dict)
        for key in ("default_prompt_name", "do_lower_case"):
            if config.get(key):
                raise TrituneError(
                    f"{source}/{name}: {key}: {shown(config[key])} is not supported; texts are read as is"
                )
    return found


def _content(source: str | Path, name: str) -> bytes | None:
    """The bytes of a file of a folder or a hub repository, None if it is not there."""
    try:
        if Path(source).is_dir():
            found = str(Path(source) / name)
        else:
            found = cached_file(source, name, _raise_exceptions_for_missing_entries=False) or ""
        return Path(found).read_bytes() if Path(found).is_file() else None
    except OSError as error:
        raise TrituneError(f"{source}: {name} cannot be read ({first_line(error)})") from None


def _json(source: str | Path, name: str, content: bytes, kind: type) -> Any:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise TrituneError(f"{source}/{name}: not a JSON {'list' if kind is list else 'object'}; download it again")
    return value
