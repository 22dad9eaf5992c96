"""No attention of a plan is left out by `torch.compile` without a word.

Dynamo hands a backend the graphs that it makes and says nothing of code that it runs as it is: an attention in a
`with` block that it cannot follow, for instance, is in no graph at all. So the sites of a plan that were in some graph
are noted, and when a whole call of the compiled model is over and some were in none, the next call is refused.
"""

from __future__ import annotations

import logging
import sys
from types import FrameType
from typing import Any

from torch.utils.weak import WeakIdKeyDictionary

from jetvit.cost_model import Plan
from jetvit.passes.pipeline import PassRecord
from jetvit.patterns.errors import MEND_THE_BREAK, PlanError
from jetvit.tied import Compiled
from jetvit.torch_private import eval_frame

log = logging.getLogger(__name__)
_WATCHES: Any = WeakIdKeyDictionary()  # plan → watch


def watch(compiled: Compiled, plan: Plan, records: list[PassRecord], only_warn: bool) -> Compiled:
    """Refuse, or warn of, the second call of a model one of whose planned attentions was in no graph at the first.

    Args:
        compiled: a graph of the model, compiled.
        plan: the plan.
        records: what the passes did to the graph.
        only_warn: warn, once, and go on.
    """
    over = _WATCHES.setdefault(plan, _Watch(plan))
    over.missing.difference_update(*(record.planned for record in records))
    if not over.missing:
        return compiled

    def watched(*inputs: Any) -> Any:
        if over.missing and over.is_new_call() and (error := over.refusal()) is not None:
            if not only_warn:
                raise error
            log.warning("%s", error)
            over.missing.clear()
        return compiled(*inputs)

    return watched


class _Watch:
    """What is still to be seen of a plan.

    Attributes:
        missing: the sites that the plan changes and that were in no graph yet.
    """

    def __init__(self, plan: Plan):
        self.missing = {entry.name for entry in plan.sites if entry.choice.kind != "full"}
        self._calls = 0

    def is_new_call(self) -> bool:
        """True in the first graph of each call of the compiled model.

        A mark on the frame of the call tells: frames have no other place for one, and it goes when the call ends.
        """
        frame = _call_of_model()
        if frame is None:
            return False
        mark = frame.f_trace if isinstance(frame.f_trace, _Mark) else _Mark()
        if self in mark.watches:
            return False
        mark.watches.append(self)
        frame.f_trace = mark
        self._calls += 1
        return True

    def refusal(self) -> PlanError | None:
        """What is wrong, where a call is over; None in the first one."""
        if self._calls < 2:
            return None
        first = sorted(self.missing)[0]
        more = f" and {len(self.missing) - 1} more" if len(self.missing) > 1 else ""
        return PlanError(
            f"the plan changes {first}{more}, and no graph of torch.compile had it in a whole call of the model",
            why="code that Dynamo cannot follow runs as it is, with full attention, or this call did not come there",
            do=f'{MEND_THE_BREAK}, or allow full attention there with options={{"partial": "warn"}}',
        )


class _Mark:
    """In the place of a frame's trace function, which is not called unless someone traces."""

    def __init__(self) -> None:
        self.watches: list[_Watch] = []

    def __call__(self, *args: Any) -> _Mark:
        return self


def _call_of_model() -> FrameType | None:
    """The outermost call of something compiled that is running."""
    found: FrameType | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals is vars(eval_frame):
            found = frame
        frame = frame.f_back
    return found
