"""Bodies for the calls of the operators: local functions of standard operators, which any runtime can run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jetvit.passes.graph.rewritable import free_name
from jetvit.passes.targets.onnx.body import Body, Shape
from jetvit.passes.targets.onnx.convention import DOMAIN, INT, TENSOR, Call, input_names, parameters, read_call
from jetvit.passes.targets.onnx.linear import linear_attention
from jetvit.passes.targets.onnx.softmax import full_attention, window_attention
from jetvit.patterns.errors import InputError

if TYPE_CHECKING:
    import onnx_ir as ir

_BODIES: dict[str, Callable[[Body, Shape, dict[str, Any]], Any]] = {
    "linear_attention": linear_attention,
    "window_attention": window_attention,
    "full_attention": full_attention,
}


def add_functions(model: ir.Model) -> int:
    """Give every call of an operator in a model a body; calls with the same arguments and shapes share one.

    A body is made for the sizes that are known where it is called: a static grid is cut into windows by slices, a
    static batch is convolved by one grouped convolution. The other sizes are read at run time.

    Args:
        model: changed in place; its calls follow the convention, and have no body yet.
    Returns:
        The number of functions.
    Raises:
        InputError: the model is of an opset before 18, or the dtype, heads or head_dim of a call are not known.
    """
    import onnx_ir as ir

    opset = model.opset_imports.get("", 0)
    if opset < 18:
        raise InputError(
            f"the operators of jetvit have no body in opset {opset}",
            why="Split and Pad took their present form in opset 18",
            do="convert the model to opset 18 or later",
        )
    made: dict[tuple[Any, ...], ir.Function] = {}
    for node in [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.domain == DOMAIN]:
        call = read_call(node)
        if call is None or (DOMAIN, node.op_type, node.overload) in model.functions:
            continue
        shape = _shape(node, call)
        key = (call.operator, shape, tuple((name, _known(value)) for name, value in call.arguments.items()))
        if key not in made:
            name = free_name(_name(call), {function.name for function in made.values()}, first=2)
            made[key] = _function(name, node, call, shape, opset)
            model.functions[made[key].identifier()] = made[key]
        node.op_type = made[key].name
    return len(made)


def _known(value: Any) -> Any:
    """The part of an argument that a body depends on: its value, or its presence."""
    return value if value is None or isinstance(value, int | float | str) else "given"


def _name(call: Call) -> str:
    """The operator's name and what tells its functions apart at a glance."""
    arguments = call.arguments
    if call.operator == "linear_attention":
        kernel = f"_conv{arguments['conv_size']}" if arguments["conv_size"] else ""
        return f"{call.operator}_{arguments['feature_map']}{kernel}"
    if call.operator == "window_attention":
        return f"{call.operator}_{arguments['window_h']}x{arguments['window_w']}"
    return f"{call.operator}_{'plain' if arguments['rope_y'] is None else 'rope'}"


def _function(name: str, node: ir.Node, call: Call, shape: Shape, opset: int) -> ir.Function:
    """A function whose inputs and attributes are those of the node."""
    import onnx_ir as ir

    body = Body(opset)
    names = input_names(call.operator)[: len(node.inputs)]
    inputs = {each: ir.Value(name=each) for each in names}
    arguments = dict(call.arguments)
    for each, kind in parameters(call.operator).items():
        if kind == TENSOR and arguments[each] is not None:
            arguments[each] = inputs[each]
        elif kind == INT and isinstance(arguments[each], ir.Value):
            arguments[each] = body.size(inputs[each])
    out = _BODIES[call.operator](body, shape, arguments)
    out.name = "out"
    return ir.Function(
        DOMAIN,
        name,
        graph=ir.Graph(list(inputs.values()), [out], nodes=body.nodes, opset_imports={"": opset}, name=name),
        # Declared, so that a call may carry them; the body is made for their values and does not read them.
        attributes=[ir.Attr(each, attribute.type, None) for each, attribute in node.attributes.items()],
    )


def _shape(node: ir.Node, call: Call) -> Shape:
    """The sizes of a call, as far as the model has them."""
    import onnx_ir as ir

    dims: list[int | None] = []
    dtype = None
    for value in (node.outputs[0], call.arguments["q"]):
        if value.shape is not None and value.dtype is not None and not dims:
            dims = [dim if isinstance(dim, int) else None for dim in value.shape]
            dtype = value.dtype
    if dtype is None or len(dims) != 4 or dims[2] is None or dims[3] is None:
        raise InputError(
            f"the {call.operator} of the node {node.name} cannot be written in standard operators",
            why="the number of heads or the size of a head is not known",
            do="run shape inference on the model first",
        )
    known = [call.arguments[name] for name in ("grid_h", "grid_w", "extra_before")]
    extra_after = None
    if dims[1] is not None and all(isinstance(each, int) for each in known):
        extra_after = dims[1] - known[2] - known[0] * known[1]
    elif "node" in node.meta:
        extra_after = _extra_after(node.meta["node"], call.operator)
    return Shape(dims[0], dims[1], dims[2], dims[3], extra_after, ir.DataType(dtype).name)


def _extra_after(call: Any, operator: str) -> int | None:
    """The number of tokens behind the grid of a torch.fx call, where it is provably one number for every grid."""
    from jetvit.patterns.sizes import expression

    names = list(parameters(operator))
    arguments = dict(zip(names, call.args, strict=False)) | call.kwargs
    sizes = [arguments[name] for name in ("grid_h", "grid_w", "extra_before")]
    height, width, before = (expression(getattr(each, "meta", {}).get("val", each)) for each in sizes)
    rest = (expression(arguments["q"].meta["val"].shape[1]) - before - height * width).expand()
    return int(rest) if rest.is_Integer else None
