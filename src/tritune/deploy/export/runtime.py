"""ONNX Runtime: a session with what a comparison must hold fixed, and a file that is called like a model."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from ...errors import TrituneError, first_line


def open_session(
    path: str | Path, threads: int | None = None, optimized: Path | None = None, profile: Path | None = None
) -> Any:
    """A session of ONNX Runtime on the CPU.

    Args:
        path: the ONNX file.
        threads: of one operator; None takes torch's.
        optimized: where to write the graph that really runs.
        profile: prefix of the file that `session.end_profiling()` writes.

    Raises:
        TrituneError: ONNX Runtime is not installed, or cannot read the file.
    """
    try:
        import onnxruntime
    except ImportError:
        raise TrituneError("this needs ONNX Runtime; pip install 'tritune[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = os.fspath(optimized)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, os.fspath(profile)
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise TrituneError(f"{path}: ONNX Runtime cannot read it ({first_line(error)})") from None


class OnnxClassifier(nn.Module):
    """An ONNX file in a model's place: takes a batch of tensors, returns `logits`."""

    device = torch.device("cpu")

    def __init__(self, path: str | Path, threads: int | None = None):
        super().__init__()
        self.session = open_session(path, threads)
        self.names = [value.name for value in self.session.get_inputs()]

    def forward(self, **inputs: torch.Tensor) -> SequenceClassifierOutput:
        """Tensors as the exported model takes them to logits, (batch, labels); further inputs are left out.

        Raises:
            TrituneError: an input that the file needs is missing.
        """
        if missing := [name for name in self.names if name not in inputs]:
            raise TrituneError(f"the ONNX file needs {', '.join(missing)}, which the tokenizer does not give")
        (logits,) = self.session.run(None, {name: inputs[name].numpy() for name in self.names})
        return SequenceClassifierOutput(logits=torch.from_numpy(logits))


def products_of(path: str | Path) -> dict[str, int]:
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
