"""`--plugin`: modules of the user's, imported before anything else so that their names are known."""

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Annotated

import typer

from ..errors import TrituneError, first_line


def _import(modules: list[str] | None) -> None:
    for module in modules or ():
        try:
            _import_file(Path(module)) if module.endswith(".py") else _import_name(module)
        except TrituneError as error:
            raise TrituneError(f"--plugin {module}: {error}") from None
        except Exception as error:
            raise TrituneError(f"--plugin {module}: {type(error).__name__}: {first_line(error)}") from error


def _import_name(module: str) -> None:
    """With the working folder among the places, as `python -m` has it and a console script has not."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.import_module(module)


def _import_file(path: Path) -> None:
    """As a module of the file's name; once in a process, as any module."""
    path = path.absolute()
    if getattr(sys.modules.get(path.stem), "__file__", None) == str(path):
        return
    spec = util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = sys.modules[path.stem] = util.module_from_spec(spec)
    spec.loader.exec_module(module)


Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        help="A module, or the path of a .py file, that registers quantizers, losses or schedules of your own. "
        "Repeat the option for more than one.",
        metavar="MODULE",
        callback=_import,
        is_eager=True,
    ),
]


def with_plugins(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the option `--plugin`, whose modules are imported before other options are looked at."""

    @functools.wraps(command)
    def run(*, plugin: object = None, **options: object) -> None:
        command(**options)

    plugin = inspect.Parameter("plugin", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Plugins)
    signature = inspect.Signature([*inspect.signature(command).parameters.values(), plugin])
    run.__signature__ = signature  # type: ignore[attr-defined]  # inspect reads it, and so does typer
    run.__annotations__ = {**command.__annotations__, "plugin": Plugins}
    return run
