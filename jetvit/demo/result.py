"""`DemoResult`: what the demo found and measured, and how it is put into words."""

from __future__ import annotations

from dataclasses import dataclass

from jetvit.bench import BenchResult
from jetvit.cost_model import Plan
from jetvit.patterns.site import Sites
from jetvit.patterns.wording import counted


@dataclass(frozen=True)
class DemoResult:
    """The results of the demo.

    * sites: the attentions of the model.
    * plan: with trained weights; its record has the metrics on the test rooms.
    * untrained: δ1 on the test rooms where all attentions are made linear and nothing is trained.
    * result: the timing.
    """

    sites: Sites
    plan: Plan
    untrained: float
    result: BenchResult

    def what_delta1_is(self) -> str:
        """Say what δ1 is, and on how many rooms it was taken."""
        rooms = counted(self.plan.provenance["images_test"], "test room")
        return f"δ1, the share of pixels whose depth is right within a factor of 1.25, on {rooms}"

    def delta1_rows(self) -> list[tuple[str, str]]:
        """Return the names of the three models, and δ1 of each."""
        test = self.plan.provenance["test"]
        return [
            ("original", f"{test['original']['delta1']:.3f}"),
            ("all linear, not trained", f"{self.untrained:.3f}"),
            ("plan, trained", f"{test['plan']['delta1']:.3f}"),
        ]

    def difference(self) -> str:
        """Return δ1 of the plan minus that of the original, with its interval."""
        mean, low, high = self.plan.provenance["test"]["plan_minus_original"]
        return f"{mean:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"

    def verdict(self) -> str:
        """Say what the difference shows."""
        test = self.plan.provenance["test"]
        margin = f"the margin of {test['margin']:g}"
        if test["non_inferior_to_original"]:
            return f"The plan is not inferior to the original at {margin}."
        if test["plan_minus_original"][2] < 0:
            return (
                f"The plan is worse than the original, not non-inferior at {margin}: so short a training is not enough."
            )
        return f"It is not shown that the plan is as good as the original, at {margin}."
