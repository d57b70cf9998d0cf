"""Writes an export in either format."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ...progress import stage
from ...tasks.heads import Head
from .dense import export_dense
from .folder import export_folder
from .layouts import LAYOUTS, Layout, is_file
from .onnx import export_onnx


def write_export(
    model: PreTrainedModel,
    head: Head,
    processor: Any,
    output: Path,
    format: str,
    layout: Layout = LAYOUTS["plain"],
    max_length: int | None = None,
) -> Path:
    """Write a model as `onnx` or `dense`; returns the file of the weights.

    Args:
        model: as `to_onnx` or `export_dense` takes it.
        head: the kind of task.
        processor: as `head.load_processor` gives it.
        output: a folder that exists, or a new file if it ends in `.onnx`.
        format: `onnx` or `dense`.
        layout: of an ONNX folder.
        max_length: see `export_folder`.

    Raises:
        TrituneError: as `export_onnx`, or the layout is not for this kind of task.
    """
    with stage(f"write {format}"):
        if is_file(output, format):
            export_onnx(model, output, layout.opset, processor.model_input_names, head, layout.target)
            return output
        if format == "onnx":
            return export_folder(model, processor, output, head, layout, max_length)
        export_dense(model, output)
        processor.save_pretrained(output)
        return output / "model.safetensors"
