"""A graph rewritten for ONNX Runtime in WebAssembly, with operators that only ONNX Runtime has (com.microsoft).

There every node costs some microseconds, whatever it computes, so nodes are what is saved:

    MatMulInteger, Cast, Mul, Mul         -> MatMulIntegerToFloat, Mul
    Add bias, Add residual, LayerNorm     -> SkipLayerNormalization
    Clip of a largest magnitude from below, Div of a scale by a number: not needed

ONNX Runtime does some of this itself when it loads a file, but not with a scale per token, or where it cannot infer
that two shapes are equal. The numbers stay the same but for the order of float products. Rejected, as measured there:
float products of codes (a third of the speed), signed left operands (a scalar loop), MatMulNBits (no kernel: all
weights are dequantized at every call), and Q, K and V as one product (what it saves, Split costs).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

_CONTRIB = "com.microsoft"


@dataclass(frozen=True)
class _Product:
    """A MatMulInteger and the nodes that make floats of it.

    Attributes:
        nodes: MatMulInteger, Cast, Mul by the scales, and Add of a bias, if any.
        left_scale, right_scale: what it is multiplied by.
        are_joined: whether the graph multiplies the scales first, as it does with those of whole tensors.
        bias: (columns,), or None.
    """

    nodes: tuple[Any, ...]
    left_scale: Any
    right_scale: Any
    are_joined: bool
    bias: Any

    @property
    def integer(self) -> Any:
        return self.nodes[0]

    @property
    def result(self) -> Any:
        return self.nodes[-1].outputs[0]


def rewrite_for_web(model: Any) -> None:
    """Rewrite an `onnx_ir.Model` in place, as `to_onnx` builds it and before its weights are packed."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph = model.graph
    graph.opset_imports[_CONTRIB] = 1
    for node in list(graph):
        if node.op_type == "LayerNormalization":
            _fuse_residual(graph, node)
        elif node.op_type == "Clip":
            _drop_lower_bound(node)
        elif node.op_type == "MatMulInteger" and (product := _product_of(node)) is not None:
            _fuse_product(graph, product)
    RemoveUnusedNodesPass()(model)


def _product_of(integer: Any) -> _Product | None:
    nodes, others = [integer], []
    for kind in ("Cast", "Mul", "Mul", "Add"):
        result = nodes[-1].outputs[0]
        following = _only_user(result)
        if following is not None and following.op_type == kind:
            others += [value for value in following.inputs if value is not result]
            nodes.append(following)
    bias = others.pop() if nodes[-1].op_type == "Add" else None
    if bias is not None and (bias.const_value is None or len(bias.shape) != 1):
        nodes, bias = nodes[:-1], None
    are_joined = len(others) == 1 and (joined := others[0].producer()) is not None and joined.op_type == "Mul"
    scales = list(joined.inputs) if are_joined else others
    if len(scales) != 2 or any(scale.shape is None for scale in scales):
        return None
    if are_joined and len(scales[0].shape):
        return None
    return _Product(tuple(nodes), scales[0], scales[1], are_joined, bias)


def _fuse_product(graph: Any, product: _Product) -> None:
    import onnx_ir as ir

    tape = ir.tape.Tape()
    left, right, *zero_points = product.integer.inputs
    zero_points += [None] * (2 - len(zero_points))
    right_scale, bias = product.right_scale, product.bias
    if product.are_joined:
        inputs = [left, right, product.left_scale, right_scale, *zero_points, bias]
        result = tape.op("MatMulIntegerToFloat", inputs, domain=_CONTRIB)
    else:
        # The operator takes one scale for the left operand and one per column for the right: the rest comes after.
        factor, rows = _without_constants(tape, product.left_scale)
        after = [rows]
        if right_scale.const_value is None:
            own_factor, right_scale = _without_constants(tape, right_scale)
            factor *= own_factor
            if right_scale.shape[-1] == 1:
                after.append(right_scale)
                right_scale = _scalar(graph, 1.0)
        inputs = [left, right, _scalar(graph, factor), right_scale, *zero_points]
        result = tape.op("MatMulIntegerToFloat", inputs, domain=_CONTRIB)
        for scale in after:
            result = tape.op("Mul", [result, scale])
        result = tape.op("Add", [result, bias]) if bias is not None else result
    _succeed(product.result, result)
    ir.convenience.replace_all_uses_with(product.result, result, replace_graph_outputs=True)
    graph.insert_before(product.integer, tape.nodes)


def _without_constants(tape: Any, scale: Any) -> tuple[float, Any]:
    """`scale` as a number times a value: what it is divided or multiplied by on its way need not be computed."""
    node = scale.producer()
    if node is not None and node.op_type in ("Div", "Mul"):
        number = _number(node.inputs[1])
        if number is not None:
            factor, value = _without_constants(tape, node.inputs[0])
            return factor * number if node.op_type == "Mul" else factor / number, value
    if node is not None and node.op_type == "Transpose":
        factor, value = _without_constants(tape, node.inputs[0])
        if value is not node.inputs[0]:
            turned = tape.op("Transpose", [value], dict(node.attributes))
            _succeed(scale, turned)
            return factor, turned
    return 1.0, scale


def _drop_lower_bound(clip: Any) -> None:
    """A row of zeros may have a scale of zero: whatever codes 0 / 0 becomes, zero is what they are multiplied by."""
    import onnx_ir as ir

    peak = clip.inputs[0]
    if len(clip.inputs) == 2 and peak.producer() is not None and peak.producer().op_type == "ReduceMax":
        ir.convenience.replace_all_uses_with(clip.outputs[0], peak)


def _fuse_residual(graph: Any, norm: Any) -> None:
    import onnx_ir as ir

    summed = norm.inputs[0]
    residual = summed.producer()
    if residual is None or residual.op_type != "Add" or norm.attributes["axis"].as_int() not in (-1, 2):
        return
    values, skip = residual.inputs
    if values.shape is None or values.shape != skip.shape or len(values.shape) != 3:
        return
    bias = None
    adds = values.producer()
    if adds is not None and adds.op_type == "Add" and _only_user(values) is residual:
        parts = sorted(adds.inputs, key=lambda value: value.const_value is not None)
        if parts[1].const_value is not None and len(parts[1].shape) == 1:
            values, bias = parts
    weights = [*norm.inputs[1:], *[None] * (3 - len(norm.inputs))]
    fused = ir.node(
        "SkipLayerNormalization",
        [values, skip, *weights, bias],
        {"epsilon": norm.attributes["epsilon"].as_float()},
        domain=_CONTRIB,
        num_outputs=4,
    )
    for old, new in ((norm.outputs[0], fused.outputs[0]), (summed, fused.outputs[3])):
        _succeed(old, new)
    norm_output = norm.outputs[0]
    graph.insert_before(norm, fused)
    ir.convenience.replace_all_uses_with(norm_output, fused.outputs[0], replace_graph_outputs=True)
    graph.remove(norm, safe=True)
    ir.convenience.replace_all_uses_with(summed, fused.outputs[3], replace_graph_outputs=True)


def _scalar(graph: Any, number: float) -> Any:
    import onnx_ir as ir

    name = f"constant_{number}"
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(number, np.float32), name=name)
        value = ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]


def _number(value: Any) -> float | None:
    import onnx_ir as ir

    tensor = ir.convenience.get_const_tensor(value)
    return float(tensor.numpy()) if tensor is not None and tensor.size == 1 else None


def _only_user(value: Any) -> Any:
    users = value.consumers()
    return users[0] if len(users) == 1 and not value.is_graph_output() else None


def _succeed(old: Any, new: Any) -> None:
    """Let `new` be of the type of `old`, and have its name where others know it by that."""
    new.shape, new.type = old.shape, old.type
    if old.is_graph_output():
        new.name, old.name = old.name, f"{old.name}_before"
