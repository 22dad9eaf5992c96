"""jetvit: rewrite full attention in Vision Transformers into linear and window attention.

The rooms (`jetvit.kernels`, `jetvit.patterns`, `jetvit.cost_model`, `jetvit.passes`, `jetvit.search`) stand beside this
folder at the top of the repository; an installed wheel has them inside it. `import jetvit` registers the `jetvit::`
operators, so that a `.pt2` file written by jetvit can be loaded again.
"""

from __future__ import annotations

from pathlib import Path

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "passes" / "__init__.py").is_file() and (_checkout / "pyproject.toml").is_file():
    # A bare checkout: ./jetvit shadows an installed wheel when Python is started at the top of the repository.
    __path__.append(str(_checkout))

__version__ = "0.1.0"

from jetvit.api import find_attention, optimize  # noqa: E402
from jetvit.cost_model import Choice, DeviceCosts, Plan  # noqa: E402
from jetvit.explain import explain  # noqa: E402
from jetvit.exporting import export  # noqa: E402
from jetvit.loading import load  # noqa: E402
from jetvit.patterns.errors import JetvitError  # noqa: E402
from jetvit.patterns.site import AttentionSite, Rejection  # noqa: E402
from jetvit.patterns.token_grid import token_grid  # noqa: E402

# Last: the first import of the room binds the room to the name `search` here, and the function takes that name from it.
# `from jetvit.search import …` goes by sys.modules and finds the room.
from jetvit.search import calibrate, check_plan, search  # noqa: E402
from jetvit.versions import warn_of_untested  # noqa: E402

warn_of_untested()

__all__ = [
    "AttentionSite",
    "Choice",
    "DeviceCosts",
    "JetvitError",
    "Plan",
    "Rejection",
    "calibrate",
    "check_plan",
    "explain",
    "export",
    "find_attention",
    "load",
    "optimize",
    "search",
    "token_grid",
]
