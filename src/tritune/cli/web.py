"""`tritune web`: a page that runs a model in the browser."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ..errors import TrituneError
from . import options


def web(
    model: Annotated[str, typer.Argument(help="A packed model or a run of `tritune train`.", metavar="MODEL")],
    output: options.Output,
    title: Annotated[str, typer.Option(help="Title of the page.", metavar="TEXT")] = "",
    json: options.Json = False,
) -> None:
    """Write MODEL, a text classifier or sentence encoder, as a page that classifies or searches as you type.

    The page computes in the browser, by the engine compiled to WebAssembly; nothing is sent to a server. The folder can
    be put on any web server as it is. Its `tritune/` has the same parts for your own pages: a module with the functions
    `classify` and `encode`. A run is packed first, as by `tritune convert`.

    Example: `tritune web small/ --output site/`, then `python -m http.server --directory site/`
    """
    from ..training.run_folder import check_free

    check_free(output, overwrite=False, inputs=(model,))
    options.begin(model)
    from ..checkpoints.files import replace_folder
    from ..checkpoints.load import load_config
    from ..deploy.pack import pack_into
    from ..deploy.web.site import check_parts, write_site
    from .show import show_result, show_site

    check_parts()
    method = getattr(load_config(model), "quantization_config", None) or {}
    is_packed = method.get("stage") == "packed"
    if is_packed and not Path(model).is_dir():
        raise TrituneError(f"{model}: is packed already, on the hub; download it and give its folder")
    with tempfile.TemporaryDirectory() as scratch, replace_folder(output) as folder:
        packed = Path(model)
        if not is_packed:
            packed = Path(scratch) / "packed"
            pack_into(model, packed)
        sizes = write_site(packed, folder, title or Path(model).resolve().name)
    show_result({"model": model, "output": str(output)} | sizes, show_site, as_json=json)
