"""Nested arguments and outputs of a signature: trees of dicts, lists and tuples whose leaves are places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jetvit.patterns.errors import InputError


def plain_tree(value: Any) -> Any:
    """A tree of dicts, lists and tuples; a mapping of another class becomes a dict."""
    if isinstance(value, Mapping):
        return {key: plain_tree(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain_tree(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain_tree(item) for item in value)
    return value if isinstance(value, int) else None


def tree_leaves(tree: Any, path: str) -> Iterator[tuple[int, str]]:
    """The places in a tree, each with the name that the ONNX file gives it."""
    if isinstance(tree, int):
        yield tree, path
    elif isinstance(tree, Mapping):
        for key, item in tree.items():
            yield from tree_leaves(item, f"{path}_{key}")
    elif isinstance(tree, list | tuple):
        for index, item in enumerate(tree):
            yield from tree_leaves(item, f"{path}_{index}")


def match_tree(file: str, name: str, tree: Any, value: Any) -> Iterator[tuple[int, Any]]:
    """The leaves of an argument by their places.

    Raises:
        InputError: it is nested in another way.
    """
    if isinstance(tree, int):
        yield tree, value
        return
    if tree is None:
        return
    if isinstance(tree, Mapping):
        if not isinstance(value, Mapping) or set(value) != set(tree):
            wanted = f"a dict with the keys {', '.join(map(str, tree))}"
            raise InputError(f"{file} does not take this {name}", why=f"it must be {wanted}", do=f"give {wanted}")
        for key, item in tree.items():
            yield from match_tree(file, f"{name}[{key!r}]", item, value[key])
        return
    if not isinstance(value, list | tuple) or len(value) != len(tree):
        wanted = f"a {type(tree).__name__} of {len(tree)}"
        raise InputError(f"{file} does not take this {name}", why=f"it must be {wanted}", do=f"give {wanted}")
    for index, (item, each) in enumerate(zip(tree, value, strict=True)):
        yield from match_tree(file, f"{name}[{index}]", item, each)


def build_tree(tree: Any, leaves: Sequence[Any]) -> Any:
    """A tree with values in place of places."""
    if isinstance(tree, dict):
        return {key: build_tree(item, leaves) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(build_tree(item, leaves) for item in tree)
    return None if tree is None else leaves[tree]


def tree_to_data(tree: Any) -> Any:
    """A tree as JSON."""
    if isinstance(tree, dict):
        return {"dict": [[key, tree_to_data(item)] for key, item in tree.items()]}
    if isinstance(tree, list | tuple):
        return {type(tree).__name__: [tree_to_data(item) for item in tree]}
    return tree


def tree_from_data(data: Any) -> Any:
    """A tree from JSON.

    Raises:
        ValueError: it is no tree.
    """
    match data:
        case None | int():
            return data
        case {"dict": items}:
            return {key: tree_from_data(item) for key, item in items}
        case {"list": items}:
            return [tree_from_data(item) for item in items]
        case {"tuple": items}:
            return tuple(tree_from_data(item) for item in items)
    raise ValueError(f"{data!r} is no tree")
