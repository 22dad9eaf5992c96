"""A model whose forward returns dicts where it returned dataclasses, so that an export of it loads anywhere."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def with_plain_outputs(model: Model) -> Model:
    """A copy of `model` that shares all its modules and weights, under the same names.

    A dataclass in its output (a HuggingFace ModelOutput is one), a named tuple or a dict of another class becomes a
    dict; entries that are None are left out. torch.export.load can rebuild a dict, and no class that it does not know.
    """
    plain = copy.copy(model)
    forward = type(model).forward

    @functools.wraps(forward)
    def flattened(*args: Any, **kwargs: Any) -> Any:
        return _plain(forward(plain, *args, **kwargs))

    parameters = list(inspect.signature(forward).parameters.values())[1:]
    flattened.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    plain.forward = flattened
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {key: _plain(item) for key, item in fields.items() if item is not None}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: _plain(item) for key, item in value._asdict().items() if item is not None}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value
