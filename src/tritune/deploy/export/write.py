"""Writes an export whole or not at all: the weights with the config and the tokenizer or image processor."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ...checkpoints.files import replace_folder
from .dense import export_dense, plain_config
from .onnx import export_onnx
from .opsets import DEFAULT_OPSET


def write_export(model: PreTrainedModel, processor: Any, output: Path, format: str, opset: int = DEFAULT_OPSET) -> Path:
    """Write `model` as `onnx` or `dense`, see `export_onnx` and `export_dense`; returns the file of the weights.

    An `output` that ends in `.onnx` is a single file, any other a folder.
    """
    if format == "onnx" and output.suffix == ".onnx":
        export_onnx(model, output, opset, processor.model_input_names)
        return output
    with replace_folder(output) as partial:
        if format == "onnx":
            export_onnx(model, partial / "model.onnx", opset, processor.model_input_names)
            plain_config(model).save_pretrained(partial)
        else:
            export_dense(model, partial)
        processor.save_pretrained(partial)
    return output / ("model.onnx" if format == "onnx" else "model.safetensors")
