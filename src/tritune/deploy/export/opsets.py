"""The supported ONNX opsets; can be checked without importing torch."""

from typing import Literal

from ...errors import TrituneError

OPSETS = range(18, 26)
Target = Literal["native", "web"]
# onnxruntime-web takes opset 21 since 1.20, INT2 not before opset 25 does.
OPSET_OF: dict[Target, int] = {"native": 25, "web": 21}


def check_opset(opset: int) -> None:
    """Raise TrituneError for an unsupported opset."""
    if opset not in OPSETS:
        raise TrituneError(f"--opset must be from {OPSETS[0]} to {OPSETS[-1]}, got {opset}")
