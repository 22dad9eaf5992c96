"""jetvit's operators against the rules of Torch-TensorRT's plugin generator, as its source has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.source import LocalSource
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

import jetvit.kernels
from benchmarks.targets.converters import release
from jetvit.passes.targets.tensorrt.plugins import PLUGINS, Plugin, register_plugins
from tests.kernels.naive import ABSENT, make_qkv, make_rope
from tests.kernels.test_linear_attention import make_weights
from tests.passes.tensorrt_release import schema_refusals

OWN = [getattr(torch.ops.jetvit, name).default for name in ("full_attention", "window_attention", "linear_attention")]
BY_NAME = [pytest.param(op, plugin, id=plugin.name) for op, plugin in PLUGINS.items()]
RANKS = {"rope_y": 3, "rope_x": 3, "w1": 2, "b1": 1, "w2": 2, "b2": 1}
ATTRIBUTES = {"window_h": 2, "window_w": 2, "scale": 0.5, "eps": 1e-6, "conv_size": 3}
ATTRIBUTES |= {"grid_h": 32, "grid_w": 24, "extra_before": 5}


@pytest.mark.parametrize("op", [*OWN, *PLUGINS], ids=str)
def test_schemas_are_taken(op: torch._ops.OpOverload) -> None:
    """Tensor, float, int and str arguments, tensors first, one overload: as the design wants them."""
    assert schema_refusals(op._schema, release().plugin_types) == []
    assert list(op.overloadpacket._schemas) == [""]


@pytest.mark.parametrize(
    ("op", "reason"),
    [
        (torch.ops.aten.cat.default, "tensors is a List"),
        (torch.ops.aten.clamp.default, "min is a Optional"),
        (torch.ops.aten.add.Tensor, "alpha is a number"),
        (torch.ops.aten.mul.Tensor, "the overload 'Tensor'"),
        (torch.ops.aten.where.ScalarSelf, "after an attribute"),
        (torch.ops.aten.split_with_sizes.default, "returns something else than tensors"),
    ],
    ids=str,
)
def test_other_schemas_are_not(op: torch._ops.OpOverload, reason: str) -> None:
    assert any(reason in each for each in schema_refusals(op._schema, release().plugin_types))


def described(plugin_call: Any, ranks: list[int], attributes: list[Any]) -> Tensor:
    """What the generator does to know an output's shape: fake fp32 tensors all of whose sizes are free, and 5."""
    shapes = ShapeEnv()
    tensors = []
    with FakeTensorMode(shape_env=shapes):
        for number, rank in enumerate(ranks):
            sizes = []
            for axis in range(rank):
                source = LocalSource(f"{number}_{axis}")
                symbol = shapes.create_symbol(5, source=source, dynamic_dim=DimDynamic.DYNAMIC)
                sizes.append(shapes.create_symintnode(symbol, hint=5, source=source))
            tensors.append(torch.randn(sizes))
        return plugin_call(*tensors, *attributes)


@pytest.mark.parametrize(("op", "plugin"), BY_NAME)
def test_the_generator_can_describe_the_output(op: torch._ops.OpOverload, plugin: Plugin) -> None:
    tensors = [name for name in plugin.arguments if name not in ATTRIBUTES]
    attributes = [ATTRIBUTES[name] for name in plugin.arguments[len(tensors) :]]
    ranks = [RANKS.get(name, 4) for name in tensors]
    out = described(op, ranks, attributes)
    assert [str(size) for size in out.shape] == [f"s{symbol}" for symbol in _symbols(op, ranks, attributes)]


def _symbols(op: Any, ranks: list[int], attributes: list[Any]) -> list[str]:
    """The symbols of the sizes of q, which stands first."""
    return [str(size).removeprefix("s") for size in described(lambda *given: given[0], ranks, attributes).shape]


def test_absent_tensors_are_why_there_are_operators_of_their_own() -> None:
    """jetvit's own operator cannot be described: a free size is not the 0 that says that there are no tables."""
    with pytest.raises(Exception, match="rope"):
        described(OWN[1], [4, 4, 4, 1, 1], [32, 24, 5, 2, 2, 0.5])


@pytest.mark.parametrize(("op", "plugin"), BY_NAME)
def test_a_plugin_is_the_operator(op: torch._ops.OpOverload, plugin: Plugin) -> None:
    torch.manual_seed(0)
    given: dict[str, Any] = dict(zip("qkv", make_qkv("packed", 2, 20, 2, 8, torch.float32), strict=True))
    given |= dict(zip(("rope_y", "rope_x"), make_rope(4, 4, 8), strict=True))
    given |= dict(zip(("w1", "b1", "w2", "b2"), make_weights(16, 3), strict=True))
    given |= ATTRIBUTES | {"grid_h": 4, "grid_w": 4, "extra_before": 3}
    names = [each.name for each in plugin.base._schema.arguments]
    full = given | dict(plugin.bound) | dict.fromkeys(plugin.absent, ABSENT)
    expected = plugin.base(*(full[name] for name in names))
    args = tuple(given[name] for name in plugin.arguments)
    torch.testing.assert_close(op(*args), expected, rtol=0, atol=0)
    torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))


def test_each_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from jetvit.passes.targets.tensorrt import plugins

    monkeypatch.setattr(plugins, "_registered", set())
    calls: list[tuple[str, dict[str, Any]]] = []

    def custom_op(name: str, **options: Any) -> None:
        calls.append((name, options))

    first = next(iter(PLUGINS))
    assert register_plugins(custom_op, [first, torch.ops.aten.add.Tensor, OWN[0]]) == [str(first._schema.name)]
    assert len(register_plugins(custom_op)) == len(PLUGINS) - 1
    assert register_plugins(custom_op) == []
    assert len(calls) == len(PLUGINS)
    assert all(options == {"supports_dynamic_shapes": True} for _, options in calls)
    assert jetvit.kernels is not None
