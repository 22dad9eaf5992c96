"""The named arguments of the operators are those of their schemas."""

from __future__ import annotations

import pytest
import torch

from jetvit.kernels.arguments import ARGUMENTS


@pytest.mark.parametrize("op", ARGUMENTS, ids=str)
def test_fields_are_the_schema_in_order(op: torch._ops.OpOverload) -> None:
    schema = op._schema.arguments
    assert ARGUMENTS[op]._fields == tuple(argument.name for argument in schema)
    defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    assert ARGUMENTS[op]._field_defaults == defaults


def test_every_operator_has_its_arguments() -> None:
    names = {str(op) for op in ARGUMENTS}
    registered = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("jetvit::")]
    assert names == {f"{name.replace('::', '.')}.default" for name in registered}
