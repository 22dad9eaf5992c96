"""Capture leaves no trace in the user's model.

`torch.export` runs the model's own code on tensors that have no values. Code that keeps tables on its module, in a
dictionary or in a cache, would hold such tensors afterwards, and so would the dictionary of a hook that keeps features.
"""

from __future__ import annotations

import functools
import itertools
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

log = logging.getLogger(__name__)
_CACHE = type(functools.lru_cache(len))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_DEPTH, _SIZE = 5, 10_000  # of containers in containers that are looked into, and how much one may hold
_WITHOUT_STATE = (
    nn.Module,
    Tensor,
    logging.Logger,
    type,
    ModuleType,
    FunctionType,
    MethodType,
    str,
    bytes,
    int,
    float,
    complex,
)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put back what the modules of a model, their hooks and their caches held before.

    Tensors are not copied: it is the attributes and the entries of containers that are kept.
    """
    kept = _Kept()
    for module in model.modules():
        kept.attributes(module)
        for hook in _hooks(module):
            kept.function(hook)
    caches = [(cache, cache.cache_info()) for cache in _caches(model)]
    try:
        yield
    finally:
        kept.put_back()
        for cache, before in caches:
            if cache.cache_info().misses != before.misses:
                cache.cache_clear()


def warn_of_hooks(model: nn.Module) -> None:
    """Warn, by name, of hooks that a rewritten model does not call; what they computed at capture is in its graph."""
    names = [name or "the model" for name, module in model.named_modules() if any(_user_hooks(module))]
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        log.warning("forward hooks of %s%s: the result does not call them", names[0], more)


def _hooks(module: nn.Module) -> Iterator[Callable[..., Any]]:
    for kind in _HOOKS:
        yield from vars(module).get(kind, {}).values()


def _user_hooks(module: nn.Module) -> Iterator[Callable[..., Any]]:
    """Hooks that are no part of a library's own modules, as those of weight norms and of placed models are."""
    for hook in _hooks(module):
        origin = str(getattr(hook, "__module__", None) or type(hook).__module__)
        if origin.partition(".")[0] not in ("torch", "accelerate", "transformers"):
            yield hook


def _caches(model: nn.Module) -> list[Any]:
    """Functions with a cache that the classes of the modules, or the files that these are from, hold."""
    classes = {kind for module in model.modules() for kind in type(module).__mro__[:-1] if kind is not nn.Module}
    places: list[Mapping[str, Any]] = [vars(kind) for kind in classes]
    places += [vars(sys.modules[name]) for name in {kind.__module__ for kind in classes} if name in sys.modules]
    found = {id(each): each for place in places for each in list(place.values()) if isinstance(each, _CACHE)}
    return list(found.values())


class _Kept:
    """Shallow copies of containers, in the order in which they were reached."""

    def __init__(self) -> None:
        self._copies: list[tuple[Any, Any]] = []
        self._seen: set[int] = set()

    def attributes(self, owner: Any, depth: int = 0) -> None:
        """Keep the attributes of an object, and what the containers among them hold."""
        self._container(vars(owner), depth)

    def function(self, function: Any) -> None:
        """Keep what a function can write to: what it closes over, its defaults, the object that it is a method of."""
        while isinstance(function, MethodType) or hasattr(function, "func"):
            self._value(getattr(function, "__self__", None), 0)
            self._value(getattr(function, "args", ()), 0)
            self._value(getattr(function, "keywords", {}), 0)
            function = getattr(function, "__func__", None) or function.func
        if not isinstance(function, FunctionType):
            self._value(function, 0)
            return
        used = [function.__globals__.get(name) for name in function.__code__.co_names]
        for cell in function.__closure__ or ():
            try:
                used.append(cell.cell_contents)
            except ValueError:  # not set yet
                continue
        for value in (*used, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._value(value, 0)

    def put_back(self) -> None:
        """Give every container the entries that it had."""
        for container, before in reversed(self._copies):
            if _identities(container, _entries(container)) == _identities(container, before):
                continue
            container.clear()
            if isinstance(container, dict | set):
                container.update(before)
            else:
                container.extend(before)

    def _value(self, value: Any, depth: int) -> None:
        if isinstance(value, dict | list | set | deque | tuple):
            self._container(value, depth)
        elif not isinstance(value, _WITHOUT_STATE) and hasattr(value, "__dict__"):
            self.attributes(value, depth)

    def _container(self, container: Any, depth: int) -> None:
        if id(container) in self._seen or depth > _DEPTH or len(container) > _SIZE:
            return
        self._seen.add(id(container))
        entries = _entries(container)
        if not isinstance(container, tuple):
            self._copies.append((container, entries))
        for value in container.values() if isinstance(container, dict) else entries:
            self._value(value, depth + 1)


def _entries(container: Any) -> list[Any]:
    return list(container.items() if isinstance(container, dict) else container)


def _identities(container: Any, entries: list[Any]) -> list[int]:
    """A key that tells entries apart; those of a dictionary are pairs, made anew each time that they are listed."""
    return [id(each) for each in (itertools.chain(*entries) if isinstance(container, dict) else entries)]
