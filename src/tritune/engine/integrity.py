"""Checksums of a packed checkpoint: nothing of its files is used before all of them are what was written.

`config.json` holds, in its `quantization_config`, a checksum of every tensor and one of what else in that file decides
what the model computes: names of labels, notes and versions may be edited there, as in any other folder.
Both are the first 32 hexadecimal digits of a SHA-256: they tell damage, not forgery. They lie there and not in the
header of the safetensors file because that file is written with its entries in no fixed order as soon as its header has
more than one.

A safetensors file is the length of its header in 8 bytes, the header in JSON, and the bytes of all tensors one after
the other without a gap.
"""

import hashlib
import json
import math
import mmap
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import TrituneError, first_line, shown

SECTION, OWN_CHECKSUM, COVERED_KEYS = "quantization_config", "config_checksum", "config_keys"
_LABELS = "id2label"
# Keys of a config that decide nothing of what a packed model computes: names, notes, and what only training reads.
_FREE = re.compile(
    r"label2id|transformers_version|_?name_or_path|tritune_shrunk|initializer_\w+|\w*(dropout|_pdrop|drop_path|layerdrop)\w*"
)
# Of a header: a model with 100,000 tensors needs less. Checked before the header is read.
LARGEST_HEADER_BYTES = 16 * 2**20
_LARGEST_CONFIG_BYTES = 64 * 2**20
_METADATA = "__metadata__"


class Dtype(NamedTuple):
    """A type of numbers: torch's name of it, which is part of a checksum, and the bytes of one."""

    name: str
    size: int


# By their names in safetensors files.
_DTYPES = {
    "F64": Dtype("torch.float64", 8),
    "F32": Dtype("torch.float32", 4),
    "F16": Dtype("torch.float16", 2),
    "BF16": Dtype("torch.bfloat16", 2),
    "I64": Dtype("torch.int64", 8),
    "I32": Dtype("torch.int32", 4),
    "I16": Dtype("torch.int16", 2),
    "I8": Dtype("torch.int8", 1),
    "U8": Dtype("torch.uint8", 1),
    "BOOL": Dtype("torch.bool", 1),
}


class Packed(NamedTuple):
    """A packed checkpoint whose files are what was written.

    Attributes:
        config_bytes: of `config.json`.
        config: their content.
        weights: the bytes of `model.safetensors`, mapped.
    """

    config_bytes: bytes
    config: dict[str, Any]
    weights: mmap.mmap

    def forget(self) -> None:
        """Leave no weights in this process's memory; what is read again comes from the file again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.weights.madvise(mmap.MADV_DONTNEED)


def checksum(dtype: str, shape: Sequence[int], content: Any) -> str:
    """Of a tensor: torch's name of its dtype, its shape, and the bytes of its elements in order.

    >>> checksum("torch.uint8", (2,), b"ab") == checksum("torch.uint8", (2, 1), b"ab")
    False
    """
    digest = hashlib.sha256(f"{dtype} {tuple(shape)}".encode())
    digest.update(content)
    return digest.hexdigest()[:32]


def is_free(key: str) -> bool:
    """Whether a key of a config may be edited, because it decides nothing of what a packed model computes.

    >>> is_free("hidden_dropout_prob"), is_free("hidden_act")
    (True, False)
    """
    return _FREE.fullmatch(key) is not None


def config_checksum(config: dict[str, Any]) -> str:
    """Of what decides what a model computes in the content of a `config.json`.

    That is the whole `quantization_config` but for the checksum itself, and the keys that it lists as `config_keys`
    with what else the model's class reads; of labels, their ids and not their names. Further keys are of other tools.
    Checkpoints that were written before there was such a list are covered as a whole.
    """
    section = {key: value for key, value in config[SECTION].items() if key != OWN_CHECKSUM}
    if (covered := section.get(COVERED_KEYS)) is not None:
        labels = sorted(config.get(_LABELS, ("0", "1")))  # where none are named there are two
        config = {key: _deciding(config[key]) for key in covered if key in config} | {_LABELS: labels}
    text = json.dumps(config | {SECTION: section}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _deciding(value: Any) -> Any:
    """A value without the keys that are free, where it is the config of a part of a model."""
    return {key: inner for key, inner in value.items() if not is_free(key)} if isinstance(value, dict) else value


def verify_config(path: Path) -> dict[str, str]:
    """Check a `config.json` against its own checksum, and return the checksums of the tensors.

    Raises:
        TrituneError: it cannot be read, is of no packed checkpoint, or is not what was written.
    """
    return _config(path)[1][SECTION]["checksums"]


def verify_tensors(paths: Iterable[Path], checksums: dict[str, str]) -> None:
    """Check that the tensors of some safetensors files are those that were written.

    Args:
        paths: all files of one checkpoint.
        checksums: name to checksum.

    Raises:
        TrituneError: a file is truncated or damaged, its header is too large, or a tensor is missing, is not expected,
            or is not what was written.
    """
    found: set[str] = set()
    for path in paths:
        found |= _verify(path, _mapped(path), checksums, found)
    _check_all_found(found, checksums, paths)


def read_packed(folder: Path) -> Packed:
    """Map the files of a packed checkpoint and verify them.

    Raises:
        TrituneError: the folder is no packed checkpoint, one of several weight files, or is not what was written.
    """
    path, weights = folder / "config.json", folder / "model.safetensors"
    if not folder.is_dir():
        raise TrituneError(f"{folder}: not a folder; give the folder of a packed model")
    if not path.is_file():
        raise TrituneError(f"{folder}: not a model: the folder has no config.json")
    if (folder / "model.safetensors.index.json").is_file():
        raise TrituneError(
            f"{folder}: its weights are in several files and the engine reads one; load the model with tritune.load "
            "and save it with a larger max_shard_size"
        )
    if not weights.is_file():
        raise TrituneError(f"{folder}: has no model.safetensors; download or convert it again")
    content, config = _config(path)
    mapped = _mapped(weights)
    checksums = config[SECTION]["checksums"]
    _check_all_found(_verify(weights, mapped, checksums, set()), checksums, [weights])
    return Packed(content, config, mapped)


def _config(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a `config.json` and their content."""
    try:
        if path.stat().st_size > _LARGEST_CONFIG_BYTES:
            raise TrituneError(f"{path}: too large for a config.json; download the folder again")
        content = path.read_bytes()
        config = json.loads(content)
        section = config[SECTION]
        known, checksums = section[OWN_CHECKSUM], section["checksums"]
        actual = config_checksum(config)
    except TrituneError:
        raise
    except OSError as error:
        raise TrituneError(f"{path}: cannot be read ({error.strerror}); a packed checkpoint needs it") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise TrituneError(
            f"{path}: not the config of a packed checkpoint; download it again, or pack the model with tritune convert"
        ) from None
    if actual != known or not isinstance(checksums, dict):
        raise TrituneError(
            f"{path}: not what was written (its checksum differs); download or convert it again. Names of labels and "
            "notes may be edited; to change more, load the model, change model.config and save it"
        )
    return content, config


def _mapped(path: Path) -> mmap.mmap:
    """The bytes of a safetensors file, of which at least the header is there."""
    if path.suffix != ".safetensors":
        raise TrituneError(f"{path}: packed weights are read from safetensors files only")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = file.seek(0, 2)
            if size < 8 or length > size - 8:
                raise TrituneError(
                    f"{path}: truncated: {size} bytes, its header alone should be {length}; download it again"
                )
            if length > LARGEST_HEADER_BYTES:
                raise TrituneError(
                    f"{path}: a header of {length} bytes is too large; at most {LARGEST_HEADER_BYTES} are read"
                )
            return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as error:
        raise TrituneError(f"{path}: cannot be read ({error.strerror})") from None


def _verify(path: Path, content: mmap.mmap, checksums: dict[str, str], before: set[str]) -> set[str]:
    """The names of the tensors of one file, none of which was found before; all of them are what was written."""
    begin = 8 + int.from_bytes(content[:8], "little")
    try:
        entries = json.loads(content[8:begin].decode(), object_pairs_hook=_without_twins)
        if entries.pop(_METADATA, None) != {"format": "pt"}:
            raise TrituneError(f"{path}: its header is damaged; download or convert it again")
        pieces = _pieces(entries, len(content) - begin)
    except TrituneError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TrituneError(f"{path}: damaged ({first_line(error)}); download or convert it again") from None
    with memoryview(content) as view:
        for name, dtype, shape, first, last in pieces:
            if name in before or name not in checksums:
                raise TrituneError(f"{path}: holds {shown(name)}, which its config.json does not list")
            with view[begin + first : begin + last] as piece:
                if checksum(dtype, shape, piece) != checksums[name]:
                    raise TrituneError(f"{path}: {name} is damaged (its checksum differs); download it again")
    return set(entries)


def _pieces(entries: dict[str, Any], size: int) -> list[tuple[str, str, list[int], int, int]]:
    """Name, dtype, shape, first byte and the one after the last of every tensor, which fill `size` bytes.

    Raises ValueError, TypeError or KeyError if they do not, or something else is not as the format wants it.
    """
    pieces, end = [], 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (first, last) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if not isinstance(shape, list) or any(
            type(number) is not int or number < 0 for number in (*shape, first, last)
        ):
            raise ValueError(f"{shown(name)} has a shape or offsets that are none")
        if first != end or last - first != math.prod(shape) * dtype.size:
            raise ValueError(f"the bytes of {shown(name)} do not lie where they should")
        pieces.append((name, dtype.name, shape, first, last))
        end = last
    if end != size:
        raise ValueError(f"{size} bytes of tensors, {end} expected")
    return pieces


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ."""
    if len(made := dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice in its header")
    return made


def _check_all_found(found: set[str], checksums: dict[str, str], paths: Iterable[Path]) -> None:
    if missing := sorted(checksums.keys() - found):
        raise TrituneError(f"{', '.join(missing[:3])} missing in {', '.join(map(str, paths))}; download it again")
