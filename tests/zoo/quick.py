"""Which models and settings a quick run takes; the sweeps over the others are slow."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def sweep(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`, of which all are slow but those in `quick`.

    A tuple is one set of several parameters. Cases of the zoo are named in `quick`, alone and within tuples.
    """
    values, quick = list(values), [_key(each) for each in quick]
    keys = [_key(value) for value in values]
    unknown = [each for each in quick if each not in keys]
    assert not unknown, f"not among the values: {unknown}"
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            id=key if isinstance(key, str) else None,
            marks=() if key in quick else pytest.mark.slow,
        )
        for value, key in zip(values, keys, strict=True)
    ]


def _key(value: Any) -> Any:
    return tuple(map(_key, value)) if isinstance(value, tuple) else getattr(value, "name", value)
