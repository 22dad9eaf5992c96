"""Words for messages: counted nouns, operators by name, and text of other libraries without addresses."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

import torch

from jetvit.patterns.sizes import Size, is_one
from jetvit.torch_private import HigherOrderOperator, OpOverload, OpOverloadPacket, is_vmap

# What repr() makes of classes, functions, operators and objects, and what a message says of them.
_REPRS = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (r"<OpOverload\(op='([\w.]+)', overload='(\w+)'\)>", r"\1.\2"),
        (r"<OpOverloadPacket\(op='([\w.]+)'\)>", r"\1"),
        (r"<(?:class|enum|module) '([\w.<>]+)'(?: from '[^']*')?>", r"\1"),
        (r"<built-in (?:function|method) (\w+)(?: of [\w.]+ object at 0x[0-9a-fA-F]+)?>", r"\1"),
        (r"<(?:bound method|function) ([\w.<>]+)(?: of <[^<>]*>| of \w+\([^<>]*\))?(?: at 0x[0-9a-fA-F]+)?>", r"\1"),
        (r"<([\w.]+)(?: object)? at 0x[0-9a-fA-F]+>", r"\1"),
        (r" at 0x[0-9a-fA-F]+", ""),
    )
)


def counted(count: Size, thing: str, things: str = "") -> str:
    """ "1 site", "2 sites", "s0 sites"; `things` is the plural where it is not made with an s."""
    one = is_one(count) if isinstance(count, torch.SymInt) else count == 1
    return f"{count} {thing}" if one else f"{count} {things or f'{thing}s'}"


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the advice for a word that is none of the known ones: the nearest of them, or else `otherwise`."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise


def operator_name(target: Any) -> str:
    """An operator or function that a node of a graph calls, as one would write it: "aten.add.Tensor", "math.ceil"."""
    if isinstance(target, str | OpOverload | OpOverloadPacket | HigherOrderOperator):
        return str(target)
    if is_vmap(target):
        return "torch.vmap"
    name = getattr(target, "__qualname__", None) or getattr(target, "__name__", None) or type(target).__name__
    module = {"_operator": "operator", "builtins": ""}.get(found := getattr(target, "__module__", None) or "", found)
    return f"{module}.{name}" if module else str(name)


def without_reprs(text: str) -> str:
    """The text of another library's error with plain names for objects, and without addresses."""
    for pattern, replacement in _REPRS:
        text = pattern.sub(replacement, text)
    return text
