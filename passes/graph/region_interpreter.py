"""Run a captured graph with its autocast regions open."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Interpreter

from jetvit.torch_private import enter_autocast, exit_autocast, is_vmap, recording_vmap


def ambient_autocast() -> dict[str, torch.dtype]:
    """The autocast regions that are open right now: device type → dtype."""
    devices = ["cpu", "cuda"]
    return {device: torch.get_autocast_dtype(device) for device in devices if torch.is_autocast_enabled(device)}


class RegionInterpreter(Interpreter):
    """Runs a Dynamo graph with its autocast regions really open.

    Tracing records `_enter_autocast` without running it, and a graph whose casts rely on the region then fails or gets
    the wrong dtypes. The context manager does both.
    """

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self._open: list[Any] = []
        try:
            return super().run(*args, **kwargs)
        finally:
            while self._open:
                self._open.pop().__exit__(None, None, None)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is enter_autocast:
            region = torch.autocast(*args, **kwargs)
            region.__enter__()
            self._open.append(region)
            return region
        if target is exit_autocast:
            self._open.pop().__exit__(None, None, None)
            return None
        if is_vmap(target):
            with recording_vmap():
                return super().call_function(target, args, kwargs)
        if target is torch.ops.higher_order.tag_activation_checkpoint:
            # At inference nothing is computed anew: what was to be checkpointed is run as it is.
            return type(self)(args[0]).run(*args[1:])
        return super().call_function(target, args, kwargs)
