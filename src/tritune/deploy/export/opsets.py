"""The versions of ONNX that are written; to be checked without importing torch."""

from ...errors import TrituneError

OPSETS = range(18, 26)
DEFAULT_OPSET = 25


def check_opset(opset: int) -> None:
    """Raise TrituneError for an opset that is not written."""
    if opset not in OPSETS:
        raise TrituneError(f"--opset must be from {OPSETS[0]} to {OPSETS[-1]}, got {opset}")
