"""What a test counts in exported files: products, by whether their operands are integers."""

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from tritune.deploy.export.codes import codes_of
from tritune.modeling.instrument import instrument_of


def count_integer_products(model: PreTrainedModel) -> int:
    """Products of two quantized operands in a forward pass of a QAT model; a layer called twice counts twice."""
    instrument, modules = instrument_of(model), dict(model.named_modules())
    anatomy = instrument.anatomy
    names = [*anatomy.embeddings, *anatomy.patch_embedding, *anatomy.pooler, *anatomy.classifier]
    for site in anatomy.sites:
        names += [site.query, site.key, site.value, site.projection, *site.ffn_in, *site.ffn_out]
    linears = sum(
        getattr(modules[name], "input_quantizer", None) is not None and codes_of(modules[name]) is not None
        for name in names
    )
    pairs = [pair for state in instrument.states for pair in _operands(state) * len(state.layers)]
    return linears + sum(None not in pair for pair in pairs)


def _operands(state: Any) -> list[tuple]:
    return [(state.query, state.key), (state.attention_probs, state.value)]


def optimized_graph(path: Path, target: Path) -> Path:
    """The graph that ONNX Runtime really runs, written to `target`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, os.fspath(target)
    onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    return target


def products_of(path: Path) -> dict[str, int]:
    """How often each kind of product occurs in an ONNX file: integer ones, and float ones.

    `float` counts MatMul, Gemm and their fusions, `convolution` the patches of an image, `integer` the rest.
    """
    import onnx

    kinds = {
        "integer": ("MatMulInteger", "MatMulIntegerToFloat"),
        "float": ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "TransposeMatMul", "Attention", "MultiHeadAttention"),
        "other": ("DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "MatMulNBits", "QAttention", "ConvInteger"),
        "convolution": ("Conv", "FusedConv"),
    }
    found = [node.op_type for node in onnx.load(os.fspath(path), load_external_data=False).graph.node]
    return {kind: sum(found.count(name) for name in names) for kind, names in kinds.items()}
