"""An ONNX model with all files that a program needs beside it, where the program looks for them."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...checkpoints.load import is_quantized, positions
from ...tasks.heads import Head
from ...tasks.heads.sentence_files import SentenceProcessor, described
from .dense import plain_config
from .layouts import LAYOUTS, Layout
from .onnx import export_onnx

_TOKENIZER_CONFIG = "tokenizer_config.json"


def export_folder(
    model: PreTrainedModel,
    processor: Any,
    folder: str | Path,
    head: Head,
    layout: Layout = LAYOUTS["plain"],
    max_length: int | None = None,
) -> Path:
    """Write an ONNX model into a folder, with config and tokenizer or image processor; returns the ONNX file.

    Args:
        model: as `to_onnx` takes it.
        processor: as `head.load_processor` gives it.
        folder: exists.
        head: the kind of task; of a sentence encoder, with its pooling.
        layout: a row of `LAYOUTS`, perhaps with another target or opset.
        max_length: to which the programs that have a layout of their own cut texts; sentence encoders have one in their
            files.

    Raises:
        TrituneError: as `export_onnx`, or the layout is not for this kind of task.
    """
    layout.check(head.name)
    folder, layout = Path(folder), layout.settled(opset=layout.opset)
    path = folder / (layout.file if is_quantized(model) else layout.float_file)
    path.parent.mkdir(exist_ok=True)
    export_onnx(model, path, layout.opset, processor.model_input_names, head, layout.target)
    plain_config(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    if layout.program:
        _add_files(model, processor, folder, layout, max_length)
        if is_quantized(model):
            _write(folder / "quantize_config.json", _quantization(model, layout))
    return path


def _add_files(model: PreTrainedModel, processor: Any, folder: Path, layout: Layout, max_length: int | None) -> None:
    """What programs other than transformers 5 need beside its own files."""
    # Without it, Node would take the float file and browsers the quantized one.
    dtype = "q8" if is_quantized(model) else "fp32"
    if layout.program == "transformers.js":
        _change(folder / "config.json", {"transformers.js_config": {"dtype": dtype}})
    tokenizer, files = processor, None
    if isinstance(processor, SentenceProcessor):
        tokenizer, files = processor.tokenizer, processor.files
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return
    if files is not None and files.contents:
        max_length = files.max_length or tokenizer.model_max_length
    lengths = [length for length in (max_length, tokenizer.model_max_length, positions(model)) if length]
    length = min(lengths)
    _write(folder / "special_tokens_map.json", dict(tokenizer.special_tokens_map))
    # fastembed looks at both lengths. The class is new in transformers 5.
    changes: dict[str, Any] = {"model_max_length": length, "max_length": length}
    if json.loads((folder / _TOKENIZER_CONFIG).read_text(encoding="utf-8"))["tokenizer_class"] == "TokenizersBackend":
        changes["tokenizer_class"] = "PreTrainedTokenizerFast"
    _change(folder / _TOKENIZER_CONFIG, changes)
    if files is not None and not files.contents:
        described(files.pooling, model.config.hidden_size, length).write(folder)


def _quantization(model: PreTrainedModel, layout: Layout) -> dict[str, Any]:
    return {
        "quant_method": "tritune",
        "version": metadata.version("tritune"),
        "file": layout.file,
        "target": layout.target,
        "opset": layout.opset,
        "quantization": asdict(model.config.quantization_config.quantization),
    }


def _change(path: Path, values: Mapping[str, Any]) -> None:
    _write(path, json.loads(path.read_text(encoding="utf-8")) | values)


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
