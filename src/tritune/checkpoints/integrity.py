"""Checksums of a packed checkpoint: nothing of its files is used before all of them are what was written.

`config.json` holds, in its `quantization_config`, a checksum of every tensor and one of everything else in that file.
Both are the first 32 hexadecimal digits of a SHA-256: they tell damage, not forgery. They lie there and not in the
header of the safetensors file because that file is written with its entries in no fixed order as soon as its header has
more than one.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import TrituneError, first_line, shown

SECTION, OWN_CHECKSUM = "quantization_config", "config_checksum"
# Of a header: a model with 100,000 tensors needs less. Checked before the header is read.
LARGEST_HEADER_BYTES = 16 * 2**20
_LARGEST_CONFIG_BYTES = 64 * 2**20


def tensor_checksum(tensor: torch.Tensor) -> str:
    """Of dtype, shape and bytes.

    >>> tensor_checksum(torch.zeros(2)) == tensor_checksum(torch.zeros(2, 1))
    False
    """
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(bytes_of(tensor))
    return digest.hexdigest()[:32]


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor of any shape, dtype and device, in the order of its elements."""
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data


def config_checksum(config: dict[str, Any]) -> str:
    """Of the content of a `config.json`, but for the checksum itself."""
    section = {key: value for key, value in config[SECTION].items() if key != OWN_CHECKSUM}
    text = json.dumps(config | {SECTION: section}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def verify_config(path: Path) -> dict[str, str]:
    """Check a `config.json` against its own checksum, and return the checksums of the tensors.

    Raises:
        TrituneError: it cannot be read, is of no packed checkpoint, or is not what was written.
    """
    try:
        if path.stat().st_size > _LARGEST_CONFIG_BYTES:
            raise TrituneError(f"{path}: too large for a config.json; download the folder again")
        config = json.loads(path.read_bytes())
        section = config[SECTION]
        known, checksums = section[OWN_CHECKSUM], section["checksums"]
        actual = config_checksum(config)
    except TrituneError:
        raise
    except OSError as error:
        raise TrituneError(f"{path}: cannot be read ({error.strerror}); a packed checkpoint needs it") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise TrituneError(f"{path}: not the config of a packed checkpoint; download or convert it again") from None
    if actual != known or not isinstance(checksums, dict):
        raise TrituneError(
            f"{path}: not what was written (its checksum differs); download or convert it again; to change a config "
            "load the model, change model.config and save it"
        )
    return checksums


def verify_tensors(paths: Iterable[Path], checksums: dict[str, str]) -> None:
    """Check that the tensors of some safetensors files are those that were written.

    Args:
        paths: all files of one checkpoint.
        checksums: name to `tensor_checksum`.

    Raises:
        TrituneError: a file is truncated or damaged, its header is too large, or a tensor is missing, is not expected,
            or is not what was written.
    """
    found: set[str] = set()
    for path in paths:
        _check_header(path)
        try:
            with safe_open(path, framework="pt") as file:
                if file.metadata() != {"format": "pt"}:
                    raise TrituneError(f"{path}: its header is damaged; download or convert it again")
                for name in sorted(file.keys()):
                    if name in found or name not in checksums:
                        raise TrituneError(f"{path}: holds {shown(name)}, which its config.json does not list")
                    if tensor_checksum(file.get_tensor(name)) != checksums[name]:
                        raise TrituneError(f"{path}: {name} is damaged (its checksum differs); download it again")
                    found.add(name)
        except TrituneError:
            raise
        except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise TrituneError(f"{path}: damaged ({first_line(error)}); download or convert it again") from None
    if missing := sorted(checksums.keys() - found):
        raise TrituneError(f"{', '.join(missing[:3])} missing in {', '.join(map(str, paths))}; download it again")


def _check_header(path: Path) -> None:
    """The first 8 bytes of a safetensors file are the length of its header."""
    if path.suffix != ".safetensors":
        raise TrituneError(f"{path}: packed weights are read from safetensors files only")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise TrituneError(f"{path}: cannot be read ({error.strerror})") from None
    if size < 8 or length > size - 8:
        raise TrituneError(f"{path}: truncated: {size} bytes, its header alone should be {length}; download it again")
    if length > LARGEST_HEADER_BYTES:
        raise TrituneError(f"{path}: a header of {length} bytes is too large; at most {LARGEST_HEADER_BYTES} are read")
