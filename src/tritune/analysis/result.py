"""Writes the result of an analysis: its numbers as one JSON file, and its figures."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..errors import TrituneError
from .plots import save

FORMATS = ("png", "svg")


def write_result(name: str, result: Any, figures: Mapping[str, Figure], folder: Path) -> None:
    """Write `<name>.json` and, for every figure, `<figure>.png` and `<figure>.svg`.

    Args:
        name: of the analysis.
        result: the dataclass it returned; arrays become nested lists, what is not finite becomes null.
        figures: file name without its ending to figure.
        folder: created if missing; files of the same names are replaced.

    Raises:
        TrituneError: the folder cannot be written to.
    """
    text = json.dumps(_plain({"analysis": name, **asdict(result)}), indent=1, allow_nan=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
        for title, figure in figures.items():
            for ending in FORMATS:
                save(figure, folder / f"{title}.{ending}")
    except OSError as error:
        raise TrituneError(f"{folder}: cannot be written to ({error.strerror})") from None


def _plain(value: Any) -> Any:
    """`value` as JSON has it."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
