"""jetvit: rewrite full attention in Vision Transformers into linear and window attention.

The rooms (`jetvit.kernels`, `jetvit.patterns`, `jetvit.cost_model`, `jetvit.passes`, `jetvit.search`) stand beside this
folder at the top of the repository; an installed wheel has them inside it. `import jetvit` registers the `jetvit::`
operators, so that a `.pt2` file written by jetvit can be loaded again. All else is imported on first use.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jetvit.api import find_attention, optimize
    from jetvit.cost_model import Choice, DeviceCosts, Plan
    from jetvit.explain import explain
    from jetvit.exporting import export
    from jetvit.loading import load
    from jetvit.patterns.errors import JetvitError
    from jetvit.patterns.site import AttentionSite, Rejection
    from jetvit.patterns.token_grid import token_grid
    from jetvit.search import calibrate, check_plan, check_task, search

__version__ = "0.1.0"

__all__ = [
    "AttentionSite",
    "Choice",
    "DeviceCosts",
    "JetvitError",
    "Plan",
    "Rejection",
    "calibrate",
    "check_plan",
    "check_task",
    "explain",
    "export",
    "find_attention",
    "load",
    "optimize",
    "search",
    "token_grid",
]

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "passes" / "__init__.py").is_file() and (_checkout / "pyproject.toml").is_file():
    # A bare checkout: ./jetvit shadows an installed wheel when Python is started at the top of the repository.
    __path__.append(str(_checkout))

_MODULES = {
    "AttentionSite": "jetvit.patterns.site",
    "Choice": "jetvit.cost_model",
    "DeviceCosts": "jetvit.cost_model",
    "JetvitError": "jetvit.patterns.errors",
    "Plan": "jetvit.cost_model",
    "Rejection": "jetvit.patterns.site",
    "calibrate": "jetvit.search",
    "check_plan": "jetvit.search",
    "check_task": "jetvit.search",
    "explain": "jetvit.explain",
    "export": "jetvit.exporting",
    "find_attention": "jetvit.api",
    "load": "jetvit.loading",
    "optimize": "jetvit.api",
    "search": "jetvit.search",
    "token_grid": "jetvit.patterns.token_grid",
}
_ROOMS = {"kernels", "patterns", "cost_model", "passes"}


class _Package(ModuleType):
    """The package as a module that keeps its functions `search` and `explain` apart from its modules of these names."""

    def __setattr__(self, name: str, value: Any) -> None:
        # After the import of a submodule, Python binds its name here. `from jetvit.search import …` needs no such name.
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Import a public name, or a room, on first use."""
    if name in _ROOMS:
        return importlib.import_module(f"jetvit.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'jetvit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})


def _is_command_line() -> bool:
    """Report whether this process runs the command `jetvit` or `python -m jetvit`."""
    script = sys.argv[0] if sys.argv else ""
    if script == "-m":  # Python is looking for the package that `python -m` names
        return sys.orig_argv[sys.orig_argv.index("-m") + 1] == "jetvit"
    return Path(script).stem == "jetvit"


if not _is_command_line():  # the command answers --help and --version without torch
    from jetvit import kernels as kernels
    from jetvit.versions import warn_of_untested

    warn_of_untested()
