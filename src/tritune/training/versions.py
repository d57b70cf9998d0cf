"""The versions of the libraries that decide what a run computes."""

import platform
from importlib import metadata

_PACKAGES = ("tritune", "torch", "transformers")


def library_versions() -> dict[str, str]:
    """Name to version, of this process: `tritune`, `torch`, `transformers`, `python`."""
    return {package: metadata.version(package) for package in _PACKAGES} | {"python": platform.python_version()}
