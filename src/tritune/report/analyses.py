"""Reads what `tritune analyze` wrote to a run folder: `analysis/NAME/NAME.json` and the figures beside it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..training.run_folder import ANALYSIS
from .figures import FORMATS, read_figure
from .files import is_number, read_object

# SVG is preferred, unless it is so large that it would slow down the page.
_LARGEST_SVG_BYTES = 2_000_000

CAPTIONS = {
    "attention": "How far each student's attention maps are from the teacher's, by layer and head: KL divergence, the "
    "order of the keys (ranking loss, cover-length ratio) and cosine.",
    "norms": "How much each token contributes to attention's output: the attention weight alpha beside the norm of the "
    "vector that it weighs, after Kobayashi et al.",
    "ranges": "The smallest and largest entries of a tensor in every layer at every token: teacher and students.",
    "layers": "Mean squared difference between the hidden states of student and teacher, layer by layer.",
    "curvature": "The Hessian's largest eigenvalues and spectrum: how sharp the minimum is. For a quantized student "
    "it is the Hessian of the straight-through surrogate, because the quantized loss is flat almost everywhere.",
    "landscape": "The loss on a plane through the weights. A wide, smooth bowl is easier to train in.",
    "heads": "Attention maps of chosen heads for one sentence: teacher, students and their difference.",
    "sensitivity": "The score with one part of the model quantized at a time, and with one part left float: what "
    "quantization costs where.",
}


@dataclass(frozen=True)
class Figure:
    """A figure of an analysis.

    Attributes:
        title: its file name without the ending, in words.
        source: the image as a `data:` URL.
        width: in CSS pixels.
    """

    title: str
    source: str
    width: int


@dataclass(frozen=True)
class Analysis:
    """One analysis of one run.

    Attributes:
        name: of its folder.
        numbers: the contents of its JSON file that fit in a table, see `table_of`.
        figures: in the order of their names.
    """

    name: str
    numbers: dict[str, str]
    figures: list[Figure]

    @property
    def caption(self) -> str:
        """One sentence on what it shows; empty for an analysis unknown to this version."""
        return CAPTIONS.get(self.name, "")


def read_analyses(folder: Path) -> dict[str, Analysis]:
    """The analyses in a run folder by name, those in `CAPTIONS` first; other files in `analysis/` are ignored.

    Raises:
        TrituneError: a JSON file or a figure is damaged; the message names it.
    """
    if not (folder / ANALYSIS).is_dir():
        return {}
    names = sorted(path.name for path in (folder / ANALYSIS).iterdir() if path.is_dir())
    known = [name for name in CAPTIONS if name in names]
    read = (_read_analysis(folder / ANALYSIS / name) for name in dict.fromkeys([*known, *names]))
    return {analysis.name: analysis for analysis in read if analysis.numbers or analysis.figures}


def _read_analysis(folder: Path) -> Analysis:
    path = folder / f"{folder.name}.json"
    numbers = table_of(read_object(path)) if path.is_file() else {}
    stems = sorted({path.stem for path in folder.iterdir() if path.suffix in FORMATS and path.is_file()})
    return Analysis(folder.name, numbers, [Figure(_words(stem), *_read_best(folder, stem)) for stem in stems])


def _read_best(folder: Path, stem: str) -> tuple[str, int]:
    """The SVG of a figure, or its PNG where that is the only one or the SVG is very large."""
    svg, png = folder / f"{stem}.svg", folder / f"{stem}.png"
    if not svg.is_file() or (png.is_file() and svg.stat().st_size > _LARGEST_SVG_BYTES):
        return read_figure(png)
    return read_figure(svg)


def _words(name: str) -> str:
    return name.replace("_", " ").replace("-", " ")


def table_of(values: dict[str, Any]) -> dict[str, str]:
    """An analysis' result as a table: numbers and words as they are, larger arrays as their shape.

    An array with a row for each of the result's `models` or `students` is also averaged over everything else.

    >>> table_of({"analysis": "layers", "students": ["a", "b"], "tokens": 7, "mse": [[1.0, 2.0], [3.0, 5.0]]})
    {'students': 'a, b', 'tokens': '7', 'mse': '2 x 2 numbers', 'mse, mean of a': '1.5', 'mse, mean of b': '4'}
    """
    table = {}
    names = values.get("students") or values.get("models")
    for key, value in values.items():
        if key == "analysis" or value is None:
            continue
        for path, leaf in _leaves(key, value):
            table[path] = _written(leaf)
            if isinstance(names, list) and isinstance(leaf, list) and len(leaf) == len(names) and leaf is not names:
                for name, part in zip(names, leaf, strict=True):
                    if isinstance(part, list) and (numbers := list(_numbers(part))):
                        table[f"{path}, mean of {name}"] = _written(sum(numbers) / len(numbers))
    return table


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The entries of nested mappings, each under its path."""
    if not isinstance(value, dict):
        yield _words(path), value
        return
    for key, part in value.items():
        yield from _leaves(f"{path}, {key}", part)


def _written(value: Any) -> str:
    if isinstance(value, list):
        if all(isinstance(part, str) for part in value) and len(value) <= 20:
            return ", ".join(value)
        return f"{' x '.join(map(str, _shape(value)))} {'numbers' if any(True for _ in _numbers(value)) else 'values'}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _shape(value: Any) -> list[int]:
    """Length along every axis, of the first entry where entries differ."""
    return [len(value), *(_shape(value[0]) if value else [])] if isinstance(value, list) else []


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in nested lists."""
    if isinstance(value, list):
        for part in value:
            yield from _numbers(part)
    elif is_number(value):
        yield value
