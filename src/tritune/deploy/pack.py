"""Packs a run into a folder that `from_pretrained` loads: the student with its tokenizer or image processor."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.convert import convert
from ..checkpoints.files import replace_folder
from ..checkpoints.load import load, load_tokenizer
from ..checkpoints.size import sizes_by_part
from ..recipes import recipe_beside
from ..tasks.heads.sentence_files import read_sentence_files


def pack_into(source: str | Path, output: Path, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Convert, and write all of the output or nothing; returns its sizes. Without `dtype` floats stay float32."""
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
