"""Models that the user's own function makes: `pkg.module:factory`."""

from __future__ import annotations

import difflib
import importlib
import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jetvit.models.loaded import LoadedModel, reason, seeded
from jetvit.models.torchvision_shim import ensure_torchvision
from jetvit.models.weights import copy_weights, read_weights, strip_prefixes
from jetvit.patterns.errors import InputError

log = logging.getLogger("jetvit.models.factory")


def load_factory(spec: str, weights: str | Path | None, args: dict[str, Any], dtype: torch.dtype | None) -> LoadedModel:
    """Import and call what `spec` names; the rest is as for `load_model`."""
    module_name, _, factory_name = spec.partition(":")
    log.warning("running your code: %s", spec)
    ensure_torchvision()  # the user's code may import it, or what imports it
    factory = _find_factory(module_name, factory_name)
    try:
        with seeded():
            model = factory(**args)
    except Exception as error:
        raise InputError(
            f"{spec} raised an error",
            why=reason(error),
            where=_place(error),
            do=f"check the function and its arguments ({', '.join(args) or 'none were given'}), which are given as "
            "--model-arg KEY=VALUE",
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{spec} returned no model", why=f"it is of type {type(model).__name__}", do="return a torch.nn.Module"
        )
    if dtype is not None:
        model.to(dtype)
    notes = [f"ran your code: {spec}"]
    if weights is not None:
        tensors = strip_prefixes(read_weights(weights), model.state_dict())
        notes += copy_weights(model, tensors, weights)
    return LoadedModel(model=model, spec=spec, notes=notes)


def _find_factory(module_name: str, factory_name: str) -> Callable[..., Any]:
    if not sys.flags.safe_path and not {"", str(Path.cwd())} & set(sys.path):
        # A console script has its own folder there; `python -m jetvit` has this one.
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        raise InputError(
            f"cannot import {module_name}",
            why=reason(error),
            where="" if absent else _place(error),
            do="go to the folder that holds it, or put it on PYTHONPATH; `jetvit --help` lists the forms of MODEL"
            if absent
            else "fix the module so that it imports",
        ) from error
    found: Any = module
    for part in factory_name.split("."):
        found = getattr(found, part, None)
    if found is not None and not callable(found):
        raise InputError(
            f"{module_name}:{factory_name} is no function",
            why=f"it is of type {type(found).__name__}",
            where=str(getattr(module, "__file__", "")),
            do="name a function or class that returns the model",
        )
    if found is None:
        close = difflib.get_close_matches(factory_name, [n for n in dir(module) if callable(getattr(module, n))], n=3)
        raise InputError(
            f"{module_name} has no function {factory_name}",
            where=str(getattr(module, "__file__", "")),
            do=f"name a function or class that returns the model{', such as ' + ', '.join(close) if close else ''}",
        )
    return found


def _place(error: BaseException) -> str:
    """File and line of the user's code that raised; "" where the call itself failed."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return "" if frame.filename == __file__ else f"{frame.filename}:{frame.lineno}"
