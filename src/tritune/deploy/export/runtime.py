"""An ONNX file in ONNX Runtime, called like a model."""

import os
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import ModelOutput

from ...errors import TrituneError, first_line


class OnnxModel(nn.Module):
    """An ONNX file in a model's place, on the CPU with torch's number of threads.

    Args:
        path: the ONNX file.
        config: of the model that it was exported from; without one its rows are evaluated in their order.

    Raises:
        TrituneError: ONNX Runtime is not installed, or cannot read the file.
    """

    device = torch.device("cpu")

    def __init__(self, path: str | Path, config: PreTrainedConfig | None = None):
        super().__init__()
        self.config = config
        try:
            import onnxruntime
        except ImportError:
            raise TrituneError("this needs ONNX Runtime; pip install 'tritune[onnx]'") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
        try:
            self.session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise TrituneError(f"{path}: ONNX Runtime cannot read it ({first_line(error)})") from None
        self.names = [value.name for value in self.session.get_inputs()]
        self.output_names = [value.name for value in self.session.get_outputs()]

    def forward(self, **inputs: torch.Tensor) -> ModelOutput:
        """Tensors as the exported model takes them to its outputs by name; further inputs are left out.

        Raises:
            TrituneError: an input that the file needs is missing.
        """
        if missing := [name for name in self.names if name not in inputs]:
            raise TrituneError(f"the ONNX file needs {', '.join(missing)}, which the tokenizer does not provide")
        found = self.session.run(self.output_names, {name: inputs[name].numpy() for name in self.names})
        return ModelOutput(zip(self.output_names, map(torch.from_numpy, found), strict=True))
