"""Figures for the page: `data:` URLs of SVG and PNG, which a browser shows as images and never executes."""

import base64
import io
import re
import warnings
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from ..errors import TrituneError
from .files import read_bytes

FORMATS = {".svg": "image/svg+xml", ".png": "image/png"}
# Per inch: of CSS, and of a figure saved by `plots.save`.
_CSS_PIXELS, _DOTS = 96, 150
_DEFAULT_WIDTH = 640
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def drawn(figure: Figure) -> str:
    """A matplotlib figure as an SVG in a `data:` URL; the same figure always gives the same bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "tritune"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _address(buffer.getvalue(), FORMATS[".svg"])


def read_figure(path: Path) -> tuple[str, int]:
    """An SVG or PNG file as a `data:` URL, and its width in CSS pixels.

    Raises:
        TrituneError: the file cannot be read or is not an image of its kind.
    """
    data = read_bytes(path)
    whole = data.startswith(_PNG_SIGNATURE) if path.suffix == ".png" else data.rstrip().endswith(b"</svg>")
    if not whole:
        raise TrituneError(f"{path}: not a complete {path.suffix[1:].upper()} image; run the analysis again")
    return _address(data, FORMATS[path.suffix]), _png_width(data) if path.suffix == ".png" else _svg_width(data)


def _png_width(data: bytes) -> int:
    """Of a figure saved by `plots.save`: the header's first number, at 150 dots per inch."""
    return int.from_bytes(data[16:20]) * _CSS_PIXELS // _DOTS


def _svg_width(data: bytes) -> int:
    """From the width in points that matplotlib writes."""
    found = re.search(rb'<svg[^>]*? width="([0-9]+(?:\.[0-9]+)?)pt"', data)
    return round(float(found[1]) * _CSS_PIXELS / 72) if found else _DEFAULT_WIDTH


def _address(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
