"""The operators of jetvit as plugins of TensorRT, through Torch-TensorRT's plugin generator.

The generator reads a schema, describes the output by calling the operator on fake tensors all of whose sizes are free,
and runs the operator itself inside of the engine. It takes Tensor, float, int, bool and str arguments, tensors first,
and so jetvit's own schemas; but an absent tensor of shape [0] is not absent any more when its size is free, and an
engine has no empty constants. So each way to call an operator is an operator of its own here, in the library
`jetvit_tensorrt`, with the tensors that are there and no others: `window_attention_rope` takes the tables,
`window_attention` does not.

An engine that holds a plugin can be loaded where `register_plugins()` was called before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from jetvit.kernels.arguments import ARGUMENTS
from jetvit.kernels.checks import is_absent
from jetvit.patterns.operator_args import arguments_of
from jetvit.torch_private import OpOverload, schema

LIBRARY = "jetvit_tensorrt"
_WEIGHTS = ("w1", "b1", "w2", "b2")
_ROPE = ("rope_y", "rope_x")


@dataclass(frozen=True)
class Plugin:
    """One way to call an operator of jetvit.

    name: of the operator in the library `jetvit_tensorrt`.
    base: the operator of jetvit that it calls.
    absent: the tensor arguments that it has not.
    bound: the arguments whose value is fixed.
    """

    name: str
    base: OpOverload
    absent: tuple[str, ...]
    bound: tuple[tuple[str, Any], ...] = ()

    @property
    def arguments(self) -> list[str]:
        """The names of the arguments that are left, in their order."""
        gone = {*self.absent, *dict(self.bound)}
        return [name for name in ARGUMENTS[self.base]._fields if name not in gone]

    @property
    def schema(self) -> str:
        """The schema, without the name."""
        types = {each.name: each.type for each in schema(self.base).arguments}
        return f"({', '.join(f'{types[name]} {name}' for name in self.arguments)}) -> Tensor"

    def call(self, *args: Any) -> Tensor:
        """Call jetvit's operator with the rest of its arguments filled in."""
        given = dict(zip(self.arguments, args, strict=True)) | dict(self.bound)
        absent = given["q"].new_empty(0)
        return self.base(*(given.get(name, absent) for name in ARGUMENTS[self.base]._fields))


def _plugins() -> Iterable[Plugin]:
    ops = torch.ops.jetvit
    yield Plugin("full_attention_rope", ops.full_attention.default, ())
    for rope, absent in (("_rope", ()), ("", _ROPE)):
        yield Plugin(f"window_attention{rope}", ops.window_attention.default, absent)
        for suffix, gone in (("", _WEIGHTS), ("_static", _WEIGHTS[:3]), ("_dynamic", ())):
            bound: tuple[tuple[str, Any], ...] = (("feature_map", "relu"),)
            bound += (("conv_size", 0),) if gone == _WEIGHTS else ()
            yield Plugin(f"linear_attention{rope}{suffix}", ops.linear_attention.default, (*absent, *gone), bound)


def _define(plugin: Plugin) -> OpOverload:
    def fake(*args: Any) -> Tensor:
        # No checks: the generator calls this with made-up sizes. jetvit's operator checks when it runs.
        return torch.empty(args[0].shape, dtype=args[0].dtype, device=args[0].device)

    op = torch.library.custom_op(f"{LIBRARY}::{plugin.name}", plugin.call, mutates_args=(), schema=plugin.schema)
    op.register_fake(fake)
    return getattr(getattr(torch.ops, LIBRARY), plugin.name).default


PLUGINS: dict[OpOverload, Plugin] = {_define(plugin): plugin for plugin in _plugins()}
_registered: set[str] = set()


def to_plugin(node: Node) -> str | None:
    """Make a node of a jetvit operator call the plugin instead; returns why not, or None where it was done."""
    given = arguments_of(node)._asdict()
    if (why := _refusal(given)) is not None:
        return why
    absent = {name for name, each in given.items() if isinstance(each, Node) and is_absent(each.meta["val"])}
    for op, plugin in PLUGINS.items():
        if plugin.base is node.target and set(plugin.absent) == absent:
            node.target = op
            node.args = tuple(given[name] for name in plugin.arguments)
            return None
    return "TensorRT's own attention does the same"  # full attention without a rotary embedding


def _refusal(given: dict[str, Any]) -> str | None:
    symbolic = [
        name for name, each in given.items() if isinstance(each, Node) and not isinstance(each.meta["val"], Tensor)
    ]
    if symbolic:
        return f"{', '.join(symbolic)} are open, and the attributes of a plugin are constants"
    if given.get("feature_map", "relu") != "relu":
        return f"the feature map {given['feature_map']!r} has no kernel"
    dtype = given["q"].meta["val"].dtype
    if dtype == torch.float64:
        return "TensorRT has no fp64"
    if dtype == torch.bfloat16:
        return "TensorRT hands no bf16 tensors to a Python plugin"
    return None


def register_plugins(custom_op: Callable[..., None], targets: Iterable[Any] = PLUGINS) -> list[str]:
    """Generate the plugins and their converters, once in a process.

    Args:
        custom_op: `torch_tensorrt.dynamo.conversion.plugins.custom_op`.
        targets: operators, of which those of this library are registered.
    Returns:
        The names that were registered now.
    """
    names = {f"{LIBRARY}::{PLUGINS[each].name}" for each in targets if each in PLUGINS}
    new = sorted(names - _registered)
    for name in new:
        custom_op(name, supports_dynamic_shapes=True)
        _registered.add(name)
    return new
