"""What transformers must know of tritune, entered when transformers is imported, whichever of the two comes first.

Transformers looks three things up by the name "tritune": an attention function, how masks are made for it, and who
reads a `quantization_config`. Each lies in a table of one module of transformers. A finder on `sys.meta_path` lets the
other finders find these modules and adds one step to their loading: the entry in the table. Where such a module is
there already, the entry is made at once. Either way it stands before any `from_pretrained` can run; where transformers
is never imported, nothing happens.

An entry is a stand-in, which imports what it stands for when it is called. Rejected: importing `plugin` in the
step, which goes in circles where a module that `plugin` needs is the first to import transformers. Rejected, too:
entry points, which transformers does not look for; and importing transformers here, for whose seconds every
`tritune --help` would wait.

The finder and the entries are state of the process, as all that is registered with transformers is.
"""

import importlib
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAME = "tritune"


def attention_forward(*args: Any, **kwargs: Any) -> Any:
    """Stands for `attention.attention_forward`, which takes its place once it is imported."""
    from ..modeling.attention import attention_forward

    return attention_forward(*args, **kwargs)


class ConfigReader:
    """Stands for `plugin.TrituneConfig`."""

    @staticmethod
    def from_dict(values: dict[str, Any], **kwargs: Any) -> Any:
        """The `TrituneConfig` of a `quantization_config` section."""
        from .plugin import TrituneConfig

        return TrituneConfig.from_dict(values, **kwargs)


def quantizer(*args: Any, **kwargs: Any) -> Any:
    """Stands for `plugin.TrituneQuantizer`."""
    from .plugin import TrituneQuantizer

    return TrituneQuantizer(*args, **kwargs)


def _enter_attention(modeling_utils: ModuleType) -> None:
    modeling_utils.AttentionInterface.register(NAME, attention_forward)


def _enter_masks(masking_utils: ModuleType) -> None:
    masking_utils.AttentionMaskInterface.register(NAME, masking_utils.eager_mask)


def _enter_quantizer(auto: ModuleType) -> None:
    # `register_quantizer` takes classes alone, and would have to import the base class of ours.
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[NAME] = ConfigReader
    auto.AUTO_QUANTIZER_MAPPING[NAME] = quantizer


_STEPS: Mapping[str, Callable[[ModuleType], None]] = {
    "transformers.modeling_utils": _enter_attention,
    "transformers.masking_utils": _enter_masks,
    "transformers.quantizers.auto": _enter_quantizer,
}


# Neither is a subclass of its kind in importlib.abc, which takes longer to import than all of this package's front.
class _Loader:
    """Loads a module as the loader in its `spec` does, and then does one thing more."""

    def __init__(self, spec: ModuleSpec, step: Callable[[ModuleType], None]):
        self.spec, self.step = spec, step
        self.loader: Any = spec.loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As the module's own loader, which the module is then left with; and the step."""
        self.spec.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.step(module)


class _Finder:
    """Has the finders behind it find the modules of `_STEPS`, and finds nothing else."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec of one of the modules, with the step added; None for any other module."""
        if name not in _STEPS:
            return None
        behind = itertools.islice(itertools.dropwhile(lambda finder: finder is not self, list(sys.meta_path)), 1, None)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in behind)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec, _STEPS[name])  # type: ignore[assignment]  # any object with these methods is one
        return spec


def install() -> None:
    """Have transformers know tritune from its import on, or at once where it is imported already."""
    sys.meta_path.insert(0, _Finder())
    for name, step in _STEPS.items():
        if name in sys.modules:
            step(importlib.import_module(name))  # waits for a thread that is just importing it
