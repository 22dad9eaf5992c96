"""jetvit's own operators in a file that jetvit has written."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from jetvit.passes.frontends.onnx.call import Call
from jetvit.passes.targets.onnx.convention import TENSOR, overload, parameters, read_call


def rewritten(call: Call) -> Tensor | None:
    """The result of one of jetvit's operators; None for any other node.

    Raises:
        InputError: the node breaks the convention.
    """
    written = read_call(call.node)
    if written is None:
        return None
    places = {value: index for index, value in enumerate(call.node.inputs) if value is not None}
    q = call.tensor(places[written.arguments["q"]])
    arguments: list[Any] = []
    for name, kind in parameters(written.operator).items():
        value = written.arguments[name]
        if kind == TENSOR:
            arguments.append(q.new_empty(0) if value is None else call.tensor(places[value]))
        elif value in places:
            arguments.append(call.known(places[value]).number)
        else:
            arguments.append(value)
    return overload(written.operator)(*arguments)
