"""The name of a site: the innermost module, the same name from every frontend."""

from __future__ import annotations

import re

from torch.fx import Node

_ROOT = re.compile(r"^[LG]\[[^\]]*\](?:\[\d+\])?(?:\.__self__)?")
_INDEX = re.compile(r"\[['\"]?([^\]'\"]+)['\"]?\]")
_CALL_COUNT = re.compile(r"@\d+")
# Where a module keeps its own: a tracer goes through `__dict__` where its class has a `__getattr__`. `_orig_mod` is the
# module inside what torch.compile returned.
_INNER = {"__dict__", "_modules", "_parameters", "_buffers", "_orig_mod"}


def module_name(node: Node) -> str:
    """The FQN of the innermost module in whose forward a node was made; "" for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [clean_name(entry[0]) for entry in stack.values()]
    return names[-1] if names else ""


def clean_name(path: str) -> str:
    """A module path without the root of the tracer, in dots: "L['self'].layer[0].attn" is "layer.0.attn"."""
    path = _CALL_COUNT.sub("", _INDEX.sub(r".\1", _ROOT.sub("", path)))
    return ".".join(part for part in path.split(".") if part and part not in _INNER)


def source_line(node: Node) -> str:
    """The line of the model's code that made a node: "file.py:12 in forward: code", or "" if it is not known."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    places = [index for index, line in enumerate(lines) if line.startswith("File ")]
    if not places:
        return ""
    match = re.match(r'File "(.+)", line (\d+), in (\S+)', lines[places[-1]])
    code = lines[places[-1] + 1] if places[-1] + 1 < len(lines) else ""
    return f"{match[1]}:{match[2]} in {match[3]}: {code}".removesuffix(": ") if match else ""


def unique(names: list[str]) -> list[str]:
    """Repeats get #1, #2, … in order."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        count = seen.get(name, 0)
        seen[name] = count + 1
        result.append(f"{name}#{count}" if count else name)
    return result
