"""Translate the operators for torch's exporter: nodes by the convention, still without a body."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from jetvit.passes.targets.onnx.convention import (
    DOMAIN,
    FLOAT,
    INT,
    OPERATORS,
    TENSOR,
    VERSION,
    input_names,
    metadata_key,
    overload,
    parameters,
)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The `custom_translation_table` of `torch.onnx.export` for the operators of jetvit."""
    return {overload(operator): _translator(operator) for operator in OPERATORS}


def _translator(operator: str) -> Callable[..., Any]:
    from onnxscript import values

    kinds = parameters(operator)
    op = values.Op(values.Opset(DOMAIN, VERSION), operator, _schema(operator))

    def translate(*args: Any) -> Any:
        import onnx_ir as ir

        inputs: list[Any] = []
        attributes: dict[str, Any] = {}
        exact: dict[str, str] = {}
        for (name, kind), value in zip(kinds.items(), args, strict=True):
            if kind == TENSOR:
                inputs.append(None if _is_absent(value) else value)
            elif kind == INT:
                inputs.append(value if isinstance(value, ir.Value) else None)
            if kind != TENSOR and not isinstance(value, ir.Value):
                attributes[name] = float(value) if kind == FLOAT else value
            if kind == FLOAT:
                exact[metadata_key(name)] = repr(float(value))
        out = op(*inputs, **attributes)
        out.producer().metadata_props.update(exact)
        return out

    return translate


def _is_absent(value: Any) -> bool:
    """True for the [0] by which an operator takes an argument as absent."""
    return value is None or (value.shape is not None and len(value.shape) == 1 and value.shape[0] == 0)


@functools.cache
def _schema(operator: str) -> Any:
    """The operator's schema in ONNX terms: all inputs but q, k and v and all attributes may be absent."""
    from onnx.defs import OpSchema

    def parameter(name: str) -> OpSchema.FormalParameter:
        option = OpSchema.FormalParameterOption
        tensor = kinds[name] == TENSOR
        return OpSchema.FormalParameter(
            # An input and an attribute of one name would be refused; the names of inputs are not in the file.
            name if tensor else f"{name}_input",
            ("T" if name in ("q", "k", "v") else f"T_{name}") if tensor else "tensor(int64)",
            param_option=option.Single if name in ("q", "k", "v") else option.Optional,
        )

    kinds = parameters(operator)
    floats = ["tensor(float16)", "tensor(bfloat16)", "tensor(float)", "tensor(double)"]
    tensors = [name for name, kind in kinds.items() if kind == TENSOR]
    types = {INT: OpSchema.AttrType.INT, FLOAT: OpSchema.AttrType.FLOAT}
    return OpSchema(
        operator,
        DOMAIN,
        VERSION,
        inputs=[parameter(name) for name in input_names(operator)],
        outputs=[OpSchema.FormalParameter("out", "T")],
        type_constraints=[
            (name, floats, "") for name in ("T", *(f"T_{name}" for name in tensors if name not in ("q", "k", "v")))
        ],
        attributes=[
            OpSchema.Attribute(name, types.get(kind, OpSchema.AttrType.STRING), required=False)
            for name, kind in kinds.items()
            if kind != TENSOR
        ],
    )
