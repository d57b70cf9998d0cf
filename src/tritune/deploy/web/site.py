"""A packed model as a folder for a web server: the demo page, the model, and what other pages need of the engine."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import jinja2

from ...engine.encoder import EMBEDDINGS, TEXTS, Encoder, load
from ...errors import TrituneError

HERE = Path(__file__).parent
# What `make web` compiles and fetches; modules best first.
MODULES = ("tritune-relaxed.wasm", "tritune.wasm")
TOKENIZERS, LICENCE, WRAPPER, SETTINGS = "tokenizers.mjs", "tokenizers.LICENSE", "tritune.mjs", "web.json"
_PARTS = (WRAPPER, TOKENIZERS, LICENCE, *MODULES)
_TEMPLATE = "page.html.jinja"
_MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_LINES = (
    "How do I reset my password?",
    "The parcel arrived two days late and the box was damaged.",
    "Cancel my subscription at the end of the month.",
    "Is there a discount for students?",
    "The app closes as soon as I open the camera.",
    "Where can I download my invoices?",
    "I was charged twice for the same order.",
    "Can I change the delivery address after ordering?",
)
_QUESTION, _TEXT = "money was taken from my card two times", "They drank the pub dry."


def write_site(packed: Path, output: Path, title: str) -> dict[str, Any]:
    """Write a page that runs a packed model in the browser.

    Args:
        packed: folder that `tritune convert` wrote, of a text classifier or a sentence encoder.
        output: an empty folder. It gets `index.html`, a demo of one file that reads the model from `model/`, and
            `tritune/` with the same parts as files, for pages of one's own.
        title: of the page.

    Returns:
        Bytes of the model with its tokenizer, `model_bytes`, and of the page, `page_bytes`.

    Raises:
        TrituneError: the engine does not run the model, it is for something else, or the parts for browsers are not
            installed.
    """
    check_parts()
    parts = {name: (HERE / name).read_bytes() for name in _PARTS}
    with load(packed, threads=1) as encoder:
        settings = _settings(encoder)
    model = output / "model"
    model.mkdir()
    for name in _MODEL_FILES:
        if not (packed / name).is_file():
            raise TrituneError(f"{packed}: has no {name}; save the fast tokenizer of the model into its folder")
        shutil.copyfile(packed / name, model / name)
    (model / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    library = output / "tritune"
    library.mkdir()
    for name, content in parts.items():
        (library / name).write_bytes(content)
    size = sum(file.stat().st_size for file in model.iterdir())
    page = _page(parts, title, settings["kind"] == EMBEDDINGS, size)
    (output / "index.html").write_text(page, encoding="utf-8")
    return {"model_bytes": size, "page_bytes": len(page.encode())}


def check_parts() -> None:
    """Check that the parts for browsers are installed.

    Raises:
        TrituneError: some are not.
    """
    if missing := [name for name in _PARTS if not (HERE / name).is_file()]:
        raise TrituneError(
            f"this installation has no {' and no '.join(missing)}, which pages need; run `make web` in a clone"
        )


def _settings(encoder: Encoder) -> dict[str, Any]:
    """What the wrapper in JavaScript does not read from the files of the model."""
    if encoder.kind not in (TEXTS, EMBEDDINGS):
        raise TrituneError(
            f"{encoder.folder}: is for {encoder.kind}; pages run text classifiers and sentence encoders. "
            "`tritune export --layout transformers.js` exports it for transformers.js"
        )
    return encoder.settings() | {"kind": encoder.kind, "labels": list(encoder.labels)}


def _page(parts: dict[str, bytes], title: str, is_encoder: bool, size: int) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    what = f"{size / 1e6:.1f} MB, computed in this page; what you type is sent nowhere."
    return environment.get_template(_TEMPLATE).render(
        title=title,
        what=what,
        lines="\n".join(_LINES),
        text=_QUESTION if is_encoder else _TEXT,
        tokenizers=_data_url("text/javascript", parts[TOKENIZERS]),
        engine=_data_url("text/javascript", parts[WRAPPER]),
        modules=[_data_url("application/wasm", parts[name]) for name in MODULES],
    )


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
