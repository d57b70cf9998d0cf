"""The supported ONNX opsets, and what a file is for; can be checked without importing torch."""

from typing import Literal

from ...errors import TrituneError

Target = Literal["native", "web"]

OPSETS = range(18, 26)
# Few versions of onnxruntime-web know opset 25, and INT2 is not faster to load there than bytes.
DEFAULT_OPSETS: dict[Target, int] = {"native": 25, "web": 21}


def check_opset(opset: int | None) -> None:
    """Raise TrituneError for an unsupported opset; None is the default of the target."""
    if opset is not None and opset not in OPSETS:
        raise TrituneError(f"--opset must be from {OPSETS[0]} to {OPSETS[-1]}, got {opset}")
