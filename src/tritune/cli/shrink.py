"""`tritune shrink`: a shallower model from some layers of a teacher."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_IMAGE_PROCESSOR = "preprocessor_config.json"


def shrink(
    teacher: Annotated[str, typer.Argument(help="A float model: a folder or a hub name.", metavar="TEACHER")],
    layers: Annotated[str, typer.Option(help="Layers to keep, counted from 0, in their new order.", metavar="LIST")],
    output: options.Output,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what `shrink` wrote there before.")] = False,
    json: options.Json = False,
) -> None:
    """Build a shallower float model from some layers of TEACHER, to be trained as its student.

    Everything else is kept: embeddings, classifier, labels, tokenizer. The folder loads with plain transformers;
    `tritune train TEACHER --student FOLDER` quantizes it and distils the teacher into it.

    Example: `tritune shrink teacher/ --layers 1,3,5,7,9,11 --output skip/`
    """
    from ..training.run_folder import check_free

    check_free(output, overwrite, inputs=(teacher,))
    options.begin(teacher)
    from ..checkpoints.load import load_float, weights_sha256
    from ..checkpoints.size import size_bytes
    from ..modeling.shrink import NOTE
    from ..modeling.shrink import shrink as shrunk
    from .show import show_result, show_shrunk

    model = load_float(teacher)
    small = shrunk(model, _numbers(layers))
    made: dict[str, Any] = {
        "source": {"path": teacher, "sha256": weights_sha256(model), "size_bytes": size_bytes(model)},
        **getattr(small.config, NOTE),
        "sha256": weights_sha256(small),
        "parameters": small.num_parameters(),
        "size_bytes": size_bytes(small),
    }
    _write(small, teacher, output, made)
    show_result(made | {"output": str(output)}, show_shrunk, as_json=json)


def _numbers(text: str) -> list[Any]:
    """The numbers of a list; anything else stays text, for `tritune.shrink` to refuse."""
    parts = options.comma_separated(text) if text.strip() else []
    return [int(part) if part.isascii() and part.isdigit() and len(part) < 10 else part for part in parts]


def _write(model: "PreTrainedModel", source: str, output: Path, made: dict[str, Any]) -> None:
    """Write the model and its tokenizer or image processor, all of it or nothing."""
    from transformers.utils import cached_file

    from ..checkpoints.files import replace_folder
    from ..checkpoints.hub import located
    from ..checkpoints.load import load_tokenizer
    from ..training.run_folder import SHRUNK, write_json

    has_text = model.main_input_name == "input_ids"
    tokenizer = load_tokenizer(source, model, max_length=1) if has_text else None
    missing_is_fine = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    processor = None if has_text else cached_file(located(source), _IMAGE_PROCESSOR, **missing_is_fine)
    with replace_folder(output) as folder:
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        if processor is not None:
            shutil.copyfile(processor, folder / _IMAGE_PROCESSOR)
        write_json(folder / SHRUNK, made)
