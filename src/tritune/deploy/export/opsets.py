"""The supported ONNX opsets; can be checked without importing torch."""

from ...errors import TrituneError

OPSETS = range(18, 26)
DEFAULT_OPSET = 25


def check_opset(opset: int) -> None:
    """Raise TrituneError for an unsupported opset."""
    if opset not in OPSETS:
        raise TrituneError(f"--opset must be from {OPSETS[0]} to {OPSETS[-1]}, got {opset}")
