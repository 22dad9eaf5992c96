"""The arguments of attention calls by name, however a graph writes them."""

from __future__ import annotations

from torch.fx import Graph

from jetvit.kernels.arguments import ARGUMENTS
from jetvit.patterns.aten_sets import SDPA
from jetvit.patterns.operator_args import SdpaArgs, arguments_of, qkv_of, sdpa_arguments


def test_sdpa_has_the_fields_and_defaults_of_its_schema() -> None:
    schema = SDPA._schema.arguments
    assert SdpaArgs._fields == tuple(argument.name for argument in schema)
    defaults = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    assert SdpaArgs._field_defaults == defaults


def test_sdpa_is_read_by_position_and_by_name() -> None:
    graph = Graph()
    q, k, v, mask = (graph.placeholder(name) for name in ("q", "k", "v", "mask"))
    by_position = graph.call_function(SDPA, (q, k, v, mask, 0.0, True), {"scale": 0.5})
    by_name = graph.call_function(SDPA, (q, k, v), {"scale": 0.5, "is_causal": True, "attn_mask": mask})
    assert sdpa_arguments(by_position) == sdpa_arguments(by_name) == SdpaArgs(q, k, v, mask, 0.0, True, 0.5)
    assert qkv_of(by_name) == (q, k, v)


def test_operators_of_jetvit_are_read_by_position_and_by_name() -> None:
    graph = Graph()
    for op, names in ARGUMENTS.items():
        values = [graph.placeholder(name) for name in names._fields]
        named = dict(zip(names._fields, values, strict=True))
        by_position, by_name = graph.call_function(op, tuple(values)), graph.call_function(op, (), named)
        assert arguments_of(by_position) == arguments_of(by_name) == tuple(values)
        assert qkv_of(by_position) == tuple(values[:3])
