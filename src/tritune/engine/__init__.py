"""The native engine of packed models: a core in C++ that needs neither Python nor torch, and its Python face.

    import tritune.engine

    model = tritune.engine.load("small")
    print(model.predict(["The book was read by me."]))

`native/` holds the sources, which are compiled when the package is installed; `binding.py` loads them. `load` needs
numpy and tokenizers, which are imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .encoder import Encoder, load

__all__ = ["Encoder", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".encoder", __name__), name)
