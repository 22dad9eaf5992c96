"""The one error family of jetvit: every refusal says what, why, where and what to do."""

from __future__ import annotations


class JetvitError(Exception):
    """A named refusal. The command line prints it without a traceback and exits with 1.

    `what` failed, `why` it did, `where` (a file, a node and its source line, a site), and what to `do` about it.
    """

    def __init__(self, what: str, *, why: str = "", where: str = "", do: str = ""):
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
