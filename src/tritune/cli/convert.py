"""`tritune convert`: a trained student as a packed model."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import TrituneError
from . import options

if TYPE_CHECKING:
    import torch


def convert(
    run: Annotated[str, typer.Argument(help="A run of `tritune train`, or any QAT model.", metavar="RUN")],
    output: options.Output,
    best: Annotated[bool, typer.Option("--best", help="Take the run's best student instead of its last.")] = False,
    dtype: Annotated[
        Literal["float32", "float16"],
        typer.Option(help="Precision of what stays float, such as norms and biases."),
    ] = "float32",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what `convert` wrote there before.")] = False,
    json: options.Json = False,
) -> None:
    """Pack the student of RUN: 2-bit ternary weights with their scales instead of latent float weights.

    The packed model gives the student's outputs bit for bit (in torch; up to rounding in the native engine), loads like
    any other model after `import tritune`, and works with evaluate and predict. It cannot be trained further. The table
    shows where the bytes are.

    Example: `tritune convert run/ --output small/`, then `tritune predict small/ --input texts.txt`
    """
    from ..training.run_folder import BEST, check_free

    source = Path(run) / BEST if best else run
    if best and not Path(source).is_dir():
        raise TrituneError(f"--best: there is no {source}; without it the last student is taken")
    check_free(output, overwrite, inputs=(run,))
    options.begin(run)
    import torch

    from .show import show_packed, show_result

    show_result(pack_into(source, output, getattr(torch, dtype)), show_packed, as_json=json)


def pack_into(source: str | Path, output: Path, dtype: "torch.dtype | None" = None) -> dict[str, Any]:
    """Convert, and write all of the output or nothing; returns its sizes. Without `dtype` floats stay float32."""
    from ..checkpoints.convert import convert
    from ..checkpoints.files import replace_folder
    from ..checkpoints.load import load, load_tokenizer
    from ..checkpoints.size import sizes_by_part
    from ..recipes import recipe_beside
    from ..tasks.heads.sentence_files import read_sentence_files

    model = convert(load(source), dtype) if dtype else convert(load(source))
    has_text = model.main_input_name == "input_ids"
    tokenizer = load_tokenizer(source, model, max_length=1) if has_text else None
    sentence_files = read_sentence_files(source) if has_text and model.base_model is model else None
    with replace_folder(output) as folder:
        model.save_pretrained(folder)
        beside = [recipe_beside(source), None if has_text else Path(source) / "preprocessor_config.json"]
        for path in filter(None, beside):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
        if sentence_files is not None:
            sentence_files.write(folder)
        size_bytes = _folder_bytes(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        tokenizer_bytes = _folder_bytes(folder) - size_bytes
    parts = sizes_by_part(model)
    float_bytes = sum(part.float_bytes for part in parts)
    return {
        "model": str(source),
        "output": str(output),
        "parts": [asdict(part) for part in parts],
        "other_bytes": size_bytes - sum(part.size_bytes for part in parts),
        "size_bytes": size_bytes,
        "float_bytes": float_bytes,
        "ratio": round(float_bytes / size_bytes, 2),
        "tokenizer_bytes": tokenizer_bytes,
    }


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
