"""ONNX: 2-bit weights in the file, integer products when it runs; no part of it needs tritune or torch.

    graph = to_onnx(model)                  # an ONNX program; opset 25 stores INT2, older ones bytes to be unpacked
    export_onnx(model, "model.onnx")

Codes of Linears are stored at their width, followed by nodes that widen them to int8, which ONNX Runtime computes once,
when it loads the file. Word embeddings stay packed in memory too: the rows of the batch are gathered, then unpacked.
Rejected: QuantizeLinear and DequantizeLinear, which leave to the runtime whether the product is one of integers;
DynamicQuantizeLinear, which has other numerics (asymmetric, not clipped, one scale per tensor).
"""

import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ...checkpoints.files import replace_file
from ...checkpoints.packing import pack
from ...errors import TrituneError, first_line
from ...modeling.instrument import is_instrumented, make_sample_inputs
from ...modeling.modes import evaluation_mode
from ...tasks.heads import TEXT_CLASSIFICATION, Head, head_of_class
from .codes import signed
from .integer import with_integer_arithmetic
from .operators import onnx_unpack, translations
from .opsets import DEFAULT_OPSETS, Target, check_opset
from .web import rewrite_for_web

# The first opsets with types of that many bits.
_OPSET_OF_TYPE = {2: 25, 4: 21}
# Of onnx.TensorProto.
_FLOAT, _INT8 = 1, 3
_CODES = re.compile(r"(?:^|\.)(odd_)?codes_([24])$")


def export_onnx(
    model: PreTrainedModel,
    path: str | Path,
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    head: Head | None = None,
    target: Target = "native",
) -> None:
    """Write a QAT model as one ONNX file, all of it or nothing; the arguments are those of `to_onnx`.

    Raises:
        TrituneError: as `to_onnx`, or the file cannot be written.
    """
    path = Path(path)
    program = to_onnx(model, opset, input_names, head, target)
    try:
        with replace_file(path) as partial:
            program.save(str(partial))
    except OSError as error:
        raise TrituneError(f"{path}: cannot be written ({error.strerror})") from None


def to_onnx(
    model: PreTrainedModel,
    opset: int | None = None,
    input_names: Sequence[str] | None = None,
    head: Head | None = None,
    target: Target = "native",
) -> torch.onnx.ONNXProgram:
    """The ONNX program of a QAT model, or of a float one.

    Inputs are those of the model (token ids, mask, token types; or pixels), with dynamic batch size and length. The
    outputs are those of its kind of task: `logits`, (batch, labels) or (batch, length, labels); `start_logits` and
    `end_logits`, (batch, length); `last_hidden_state`, (batch, length, width), and `sentence_embedding`, (batch,
    width), which is pooled and normalized.

    Args:
        model: computes as it would in evaluation mode; is not changed.
        opset: 18 to 25. From 25 on 2-bit codes are stored as INT2, before as bytes and nodes that unpack them. None is
            25, or 21 for the web.
        input_names: inputs that the tokenizer provides (`tokenizer.model_input_names`); others take the model's
            default. None takes all inputs.
        head: the kind of task. None goes by the model's class; a sentence encoder then pools as the files say that lie
            where it was loaded from, or takes the mean if there are none.
        target: "web" writes a graph for ONNX Runtime in WebAssembly, see `web`; "native" one of standard operators.

    Raises:
        TrituneError: the opset is out of range, onnx is not installed, torch.onnx cannot trace the model, or the files
            of a sentence encoder cannot be used.
    """
    check_opset(opset)
    opset = DEFAULT_OPSETS[target] if opset is None else opset
    _check_installed()
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass, CommonSubexpressionEliminationPass

    inputs = _inputs(model)
    if input_names is not None:
        inputs = {name: value for name, value in inputs.items() if name in input_names}
    head = head or _head_of(model)
    model = with_integer_arithmetic(model) if is_instrumented(model) else model
    with evaluation_mode(model), torch.no_grad(), quiet():
        try:
            program = torch.onnx.export(
                _Graph(model, list(inputs), head).eval(),
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=list(head.output_names),
                dynamic_shapes=(tuple(_free_dimensions(value) for value in inputs.values()),),
                custom_translation_table=translations(),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            cause = first_line(error.__cause__ or error)
            raise TrituneError(f"{type(model).__name__} cannot be exported: {cause}") from None
    assert program is not None  # it is for `dynamo=False` only
    # Where it cannot trace a model with free dimensions, it may have taken those of the sample.
    if any(isinstance(value.shape and value.shape[0], int) for value in program.model.graph.inputs):
        raise TrituneError(f"{type(model).__name__} cannot be exported: its graph takes batches of one size only")
    # Q, K and V quantize the same input.
    CommonSubexpressionEliminationPass()(program.model)
    if target == "web":
        rewrite_for_web(program.model)
    _store_packed(program.model, opset)
    # Names and source lines of torch would be a quarter of the file.
    ClearMetadataAndDocStringPass()(program.model)
    _forget_shapes(program.model)
    return program


class _Graph(nn.Module):
    """The model with positional inputs, and with the outputs of its kind of task alone."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str], head: Head):
        super().__init__()
        self.model, self.names, self.head = model, names, head

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tensors in the order of `names` to those in the order of `head.output_names`."""
        batch = dict(zip(self.names, values, strict=True))
        return self.head.outputs(self.model(**batch, return_dict=True), batch)


def _head_of(model: PreTrainedModel) -> Head:
    """The kind of task of a model by its class; of one that is no kind's, that of whatever has logits."""
    head = head_of_class(type(model).__name__) or TEXT_CLASSIFICATION
    return head.for_model(model.name_or_path) if model.name_or_path else head


def _inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A small batch of every input that the model's own tokenizer or image processor gives."""
    inputs = make_sample_inputs(model)
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
    if takes_types and getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    return inputs


def _free_dimensions(value: torch.Tensor) -> dict[int, Any]:
    names = ("batch", "length") if value.ndim == 2 else ("batch",)
    return {index: torch.export.Dim(name) for index, name in enumerate(names)}


def _store_packed(model: Any, opset: int) -> None:
    """Replace the codes of Linears by packed ones and the nodes that widen them to int8."""
    import onnx_ir as ir

    tape = ir.tape.Tape()

    def call(operator: str, *inputs: Any, **attributes: Any) -> Any:
        return tape.op(operator, inputs, attributes)

    for name, value in list(model.graph.initializers.items()):
        if (match := _CODES.search(name)) is None:
            continue
        are_odd, bits, codes = bool(match[1]), int(match[2]), value.const_value.numpy()
        codes = (codes - 1) // 2 if are_odd else codes
        if opset >= _OPSET_OF_TYPE[bits]:
            kind = ir.DataType[f"INT{bits}"]
            stored = ir.tensor(codes.astype(kind.numpy()), name=f"{name}.packed")
            wide = call("Cast", _initializer(model, stored), to=_FLOAT if are_odd else _INT8)
            if are_odd:
                doubled = call("Mul", wide, call("Constant", value_float=2.0))
                wide = call("Cast", call("Add", doubled, call("Constant", value_float=1.0)), to=_INT8)
        else:
            stored = ir.tensor(pack(torch.from_numpy(codes), bits, signed(bits)).numpy(), name=f"{name}.packed")
            wide = onnx_unpack(call, _initializer(model, stored), bits, codes.shape[-1], np.int8, are_odd)
        ir.convenience.replace_all_uses_with(value, wide)
        del model.graph.initializers[name]
    if tape.nodes:
        model.graph.insert_before(model.graph[0], tape.nodes)


def _forget_shapes(model: Any) -> None:
    """Drop the shapes of inner values, which runtimes infer; quantize_dynamic stumbles over those of weights."""
    for value in [*model.graph.initializers.values(), *(value for node in model.graph for value in node.outputs)]:
        if not value.is_graph_output():
            value.shape = value.type = None


def _initializer(model: Any, tensor: Any) -> Any:
    import onnx_ir as ir

    value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise TrituneError(f"the export to ONNX needs {error.name}; pip install 'tritune[onnx]'") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Within the context libraries neither warn of their own sources nor give advice on the root logger."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
