"""`tritune demo`."""


def demo() -> None:
    """Demo."""
