"""Parts of a long analysis, kept as they are measured, so that one that was stopped goes on where it was.

A part is found again by everything that decides it: the weights, the rows, the settings. So a file of parts is never
out of date, and nobody has to say whether an analysis begins or goes on.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import CannotWriteError


def fingerprint(*values: Any) -> str:
    """A checksum of models (their parameters and buffers), tensors, and what JSON can hold, also nested.

    >>> fingerprint({"a": torch.ones(2)}, 3) == fingerprint({"a": torch.ones(2)}, 3) != fingerprint(3)
    True
    """
    checksum = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, nn.Module):
            value = value.state_dict()
        if isinstance(value, torch.Tensor):
            checksum.update(f"{value.dtype}{tuple(value.shape)}".encode())
            checksum.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            for key, part in value.items():
                checksum.update(repr(key).encode())
                add(part)
        elif isinstance(value, list | tuple):
            checksum.update(f"[{len(value)}]".encode())
            for part in value:
                add(part)
        else:
            checksum.update(json.dumps(value).encode() + b"\n")

    for value in values:
        add(value)
    return checksum.hexdigest()


def identity(model: PreTrainedModel | None) -> list[Any]:
    """What makes a model give the numbers that it gives, for `fingerprint`; empty for no model."""
    return [] if model is None else [model.config.to_json_string(), model]


class Kept:
    """Parts in a file, one line of JSON each; without a file they are measured and forgotten.

    Args:
        path: of the file; it is created with the first part, and read if it is there.

    Attributes:
        found: number of parts that were in the file.
    """

    def __init__(self, path: Path | None = None):
        self.path, self.parts = path, dict[str, Any]()
        with suppress(FileNotFoundError):
            for line in path.read_text(encoding="utf-8").splitlines() if path else []:
                with suppress(ValueError):  # the last line may be half written
                    entry = json.loads(line)
                    self.parts[entry["part"]] = entry["value"]
        self.found = len(self.parts)

    def __contains__(self, part: str) -> bool:
        return part in self.parts

    def measured(self, part: str, measure: Callable[[], Any]) -> Any:
        """The value of a part: what is kept, or what `measure` returns, which is then kept.

        Args:
            part: its fingerprint.
            measure: returns what JSON can hold; numbers come back bit for bit, also NaN and infinity.

        Raises:
            CannotWriteError: the file cannot be written.
        """
        if part not in self.parts:
            line = json.dumps({"part": part, "value": measure()})
            self._append(line)
            self.parts[part] = json.loads(line)["value"]
        return self.parts[part]

    def forget(self) -> None:
        """Remove the file, once the whole result is written."""
        if self.path:
            self.path.unlink(missing_ok=True)

    def _append(self, line: str) -> None:
        if not self.path:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"\n{line}")  # in front, so that a half-written line spoils no other one
        except OSError as error:
            raise CannotWriteError(f"{self.path}: cannot be written to ({error.strerror})") from None
