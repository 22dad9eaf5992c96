"""No attention of a plan is left out by `torch.compile` without a word.

Dynamo hands a backend the graphs that it makes and says nothing of code that it runs as it is: an attention in a
`with` block that it cannot follow, for instance, is in no graph at all. So the graphs of a plan note their sites when
they run, and a call of the compiled model is refused at its end if some site of the plan was in none.

A model of which Dynamo makes no graph at all is beyond this: it calls no backend then, and a backend has no other part
in a call. So it is with `torch.compiler.disable` on the model's own forward, with `torch.compiler.set_stance(
"force_eager")`, or inside another function that is compiled with another backend. `fullgraph=True` makes torch refuse
the first. (Tried: `backend_ctx_ctor`, which torch looks up on a wrapper of the backend and not on the backend; the
callbacks of `torch._dynamo.callback`, which Dynamo does not call for code that it skips, and forgets at a reset.)
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from torch.utils.weak import WeakIdKeyDictionary

from jetvit.cost_model import Plan
from jetvit.dynamo.parameter_guards import Compiled
from jetvit.passes.pipeline import PassRecord
from jetvit.patterns.errors import MEND_THE_BREAK, PlanError
from jetvit.torch_private import running_call

log = logging.getLogger(__name__)
_RUNS: Any = WeakIdKeyDictionary()  # plan → runs of its graphs


def watch(compiled: Compiled, plan: Plan, records: list[PassRecord], only_warn: bool) -> Compiled:
    """Refuse, or warn of, a call of a model one of whose planned attentions was in no graph, when the call ends.

    Args:
        compiled: a graph of the model, compiled.
        plan: the plan.
        records: what the passes did to the graph.
        only_warn: warn, once, and go on.
    """
    runs = _RUNS.setdefault(plan, _Runs())
    call = running_call()
    if call is not None and call.context not in runs.watches:
        planned = {entry.name for entry in plan.sites if entry.choice.kind != "full"}
        runs.watches[call.context] = added = _Watch(runs, planned, only_warn)
        call.context.enter_exit_hooks.append(added.enter)
        call.cleanups.append(added.exit)
    names = frozenset[str]().union(*(record.planned for record in records))
    if not names:
        return compiled

    def noted(*inputs: Any) -> Any:
        runs.count += 1
        runs.last[names] = runs.count
        return compiled(*inputs)

    return noted


class _Runs:
    """The runs of the graphs of a plan, in order.

    Attributes:
        count: how many there were.
        last: the last run of the graphs that hold these sites.
        ended: how many there were when a call ended last.
        watches: by torch's object for one call of `torch.compile`.
    """

    def __init__(self) -> None:
        self.count = self.ended = 0
        self.last: dict[frozenset[str], int] = {}
        self.watches: Any = WeakIdKeyDictionary()


class _Watch:
    """Sees to it that a compiled model runs all sites of a plan.

    Attributes:
        missing: the sites that the plan changes and that no graph ran yet.
    """

    def __init__(self, runs: _Runs, planned: set[str], only_warn: bool):
        self.missing = planned
        self._runs, self._only_warn = runs, only_warn
        # The first call is watched from its first compilation on: a graph that another instance shares may run before.
        self._start = runs.ended

    def enter(self) -> Callable[[], None]:
        """A call begins; the result is to be called at its end."""
        self._start = self._runs.count
        return self.exit

    def exit(self) -> None:
        """A call ends.

        Raises:
            PlanError: some sites of the plan were in no graph of it, nor of a call before.
        """
        runs = self._runs
        runs.ended = runs.count
        if not self.missing:
            return
        self.missing.difference_update(*(names for names, last in runs.last.items() if last > self._start))
        if not self.missing or _is_failing(sys._getframe(1)):
            return
        error = _refusal(sorted(self.missing))
        if not self._only_warn:
            raise error
        log.warning("%s", error)
        self.missing.clear()


def _is_failing(frame: Any) -> bool:
    """True if an error is on its way out of a frame that runs its `finally`."""
    traceback = getattr(sys.exc_info()[1], "__traceback__", None)
    return traceback is not None and traceback.tb_frame is frame


def _refusal(missing: list[str]) -> PlanError:
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return PlanError(
        f"the plan changes {missing[0]}{more}, and no graph of torch.compile had it in a whole call of the model",
        why="code that Dynamo cannot follow runs as it is, with full attention, or this call did not come there",
        do=f'{MEND_THE_BREAK}, or allow full attention there with options={{"partial": "warn"}}',
    )
