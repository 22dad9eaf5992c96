"""The one error family of jetvit: every refusal says what, why, where and what to do."""

from __future__ import annotations

from jetvit.patterns.wording import without_reprs

# What to do where torch.compile broke a model into graphs that a plan cannot be applied to.
MEND_THE_BREAK = (
    "change the line that breaks the graph, which torch.compile names with fullgraph=True (where it reads a number, "
    "torch._dynamo.config.capture_scalar_outputs = True may do), or try jetvit.optimize, which captures without Dynamo"
)
# What to do where a refusal says that the token grid is not known.
NAME_THE_GRID = (
    "where the tokens are a grid that the graph does not show, name it in the model before its first block: "
    "x = jetvit.token_grid(x, height, width, before=EXTRA_TOKENS)"
)


class JetvitError(Exception):
    """A named refusal. The command line prints it without a traceback and exits with 1.

    `what` failed, `why` it did, `where` (a file, a node and its source line, a site), and what to `do` about it.
    """

    def __init__(self, what: str, *, why: str = "", where: str = "", do: str = ""):
        what, why, do = (without_reprs(text) for text in (what, why, do))
        self.what, self.why, self.where, self.do = what, why, where, do
        parts = [what] + [f"  {label}: {text}" for label, text in (("why", why), ("where", where), ("do", do)) if text]
        super().__init__("\n".join(parts))


class CaptureError(JetvitError):
    """A model could not be captured as a graph."""


class PlanError(JetvitError):
    """A plan is broken, or does not fit the model at hand."""


class RewriteError(JetvitError):
    """A rewrite was asked for that cannot be done, or a pass broke the graph."""


class InputError(JetvitError):
    """A file, an option or a model argument is not what it should be."""


class DiskFullError(InputError):
    """A file could not be written, because its disk is full."""
