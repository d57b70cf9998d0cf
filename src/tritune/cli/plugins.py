"""`--plugin`: modules of the user's, imported before anything else so that their names are known."""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ..errors import TrituneError, first_line


def _import(modules: list[str] | None) -> None:
    for module in modules or ():
        try:
            _import_one(module)
        except TrituneError as error:
            raise TrituneError(f"--plugin {module}: {error}") from None
        except Exception as error:
            raise TrituneError(f"--plugin {module}: {type(error).__name__}: {first_line(error)}") from error


def _import_one(module: str) -> None:
    """A module by its name, from the working folder too, as with `python -m`; or a file, as a module of its name."""
    path = Path(module).absolute()
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise TrituneError("there is no such file")
    folder = str(path.parent if is_file else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    found = importlib.import_module(path.stem if is_file else module)
    if is_file and found.__file__ != str(path):
        raise TrituneError(f"another module is called {path.stem} ({found.__file__}); rename the file")


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
