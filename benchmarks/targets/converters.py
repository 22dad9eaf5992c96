"""The converters of the known release of Torch-TensorRT: `converters.json`, read and checked.

`python -m benchmarks.targets.tensorrt_converters` makes the file from a wheel. It holds names alone.
"""

from __future__ import annotations

import functools
import json
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jetvit.patterns.errors import InputError
from jetvit.torch_private import OpOverload, OpOverloadPacket

FILE = Path(__file__).with_name("converters.json")
FORMAT = 1


@dataclass(frozen=True)
class Converter:
    """One registration of a converter.

    op: the operator, such as "aten.add.Tensor" or "operator.getitem".
    function: the converter's name.
    validator: what must accept a node, by name; None accepts all.
    dynamic: it takes symbolic sizes.
    output_allocator: its output's size is known only after it ran.
    requires: what must hold for it to be registered at all, such as the import of another package.
    """

    op: str
    function: str
    validator: str | None
    dynamic: bool
    output_allocator: bool
    requires: str | None


@dataclass(frozen=True)
class Signature:
    """The parameters of a function: positional ones, keyword-only ones, and whether it swallows others."""

    positional: tuple[str, ...]
    keyword: tuple[str, ...]
    others: bool

    @property
    def names(self) -> tuple[str, ...]:
        return self.positional + self.keyword


@dataclass(frozen=True)
class Release:
    """A release of Torch-TensorRT, as far as its source tells.

    wheel, version: where this is from.
    converters: by operator, in the order of registration.
    enabled, disabled, attention: the groups of torch's decompositions that it uses, does not use, and keeps for
        `decompose_attention`.
    own: operators that it decomposes by functions of its own → the function, or the operator in its place.
    removed: operators that its lowering passes erase.
    plugin_types: the schema types that its plugin generator takes, by their names in `torch._C`.
    signatures: of the functions that are called here.
    settings: the names of its compilation settings.
    backends: the names of its backends of torch.compile.
    """

    wheel: str
    version: str
    converters: Mapping[str, tuple[Converter, ...]]
    enabled: tuple[str, ...]
    disabled: tuple[str, ...]
    attention: tuple[str, ...]
    own: Mapping[str, str]
    removed: tuple[str, ...]
    plugin_types: tuple[str, ...]
    signatures: Mapping[str, Signature]
    settings: tuple[str, ...]
    backends: tuple[str, ...]


@functools.cache
def release(path: Path = FILE) -> Release:
    """Read the file.

    Raises:
        InputError: it is missing, no JSON, of another format, or has something else in a place than it should.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("the converters of Torch-TensorRT cannot be read", why=str(error), where=str(path)) from error
    try:
        return _parse(document)
    except (KeyError, TypeError, ValueError) as error:
        why = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        do = "make it again with python -m benchmarks.targets.tensorrt_converters"
        raise InputError(
            "the converters of Torch-TensorRT are not as they should be", why=why, where=str(path), do=do
        ) from error


def _parse(document: Any) -> Release:
    if _expect(document, dict, "the document").get("format") != FORMAT:
        raise ValueError(f"the format is {document.get('format')!r}, and {FORMAT} is known")
    by_op: dict[str, list[Converter]] = {}
    for entry in _expect(document["converters"], list, "converters"):
        converter = Converter(
            _expect(entry["op"], str, "op"),
            _expect(entry["function"], str, "function"),
            _optional(entry["validator"], "validator"),
            _expect(entry["dynamic"], bool, "dynamic"),
            _expect(entry["output_allocator"], bool, "output_allocator"),
            _optional(entry["requires"], "requires"),
        )
        by_op.setdefault(converter.op, []).append(converter)
    groups = _expect(document["decompositions"], dict, "decompositions")
    return Release(
        _expect(document["wheel"], str, "wheel"),
        _expect(document["version"], str, "version"),
        {op: tuple(converters) for op, converters in by_op.items()},
        _names(groups["enabled"], "enabled"),
        _names(groups["disabled"], "disabled"),
        _names(groups["attention"], "attention"),
        {_expect(each["op"], str, "op"): _expect(each["by"], str, "by") for each in groups["own"]},
        _names(document["removed"], "removed"),
        _names(document["plugin_types"], "plugin_types"),
        {name: _signature(each) for name, each in _expect(document["signatures"], dict, "signatures").items()},
        _names(document["settings"], "settings"),
        _names(document["backends"], "backends"),
    )


def _signature(entry: Any) -> Signature:
    others = _expect(entry["others"], bool, "others")
    return Signature(_names(entry["positional"], "positional"), _names(entry["keyword"], "keyword"), others)


def _expect(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}, and should be a {kind.__name__}")
    return value


def _optional(value: Any, name: str) -> str | None:
    return None if value is None else _expect(value, str, name)


def _names(value: Any, name: str) -> tuple[str, ...]:
    return tuple(_expect(each, str, name) for each in _expect(value, list, name))


def op_of(name: str) -> Any:
    """The operator, packet or function of a name in the file; None where this torch has none of it."""
    first, _, rest = name.partition(".")
    root: Any = {"operator": operator, "torch": torch, "math": math}.get(first)
    try:
        return operator.attrgetter(rest if root is not None else name)(root if root is not None else torch.ops)
    except AttributeError:
        return None


def name_of(target: Any) -> str:
    """The name of a node's target as the file has it."""
    if isinstance(target, OpOverload | OpOverloadPacket):
        return str(target)
    module = getattr(target, "__module__", "")
    return f"{'operator' if module == '_operator' else module}.{getattr(target, '__name__', target)}"
