"""List all steps of a campaign, in order of value, with the sweep for the cost model and the search among them."""

from __future__ import annotations

from benchmarks.breakdown import measure as breakdown
from benchmarks.end_to_end import measure as end_to_end
from benchmarks.gpu import kernel_steps, model_steps, operator_tests, search_step
from benchmarks.gpu.campaign import Campaign, Cost, Step, TimeOver, time_slice_s
from jetvit import __version__
from jetvit.cost_model.measuring import sweep
from jetvit.cost_model.measuring.measure import measure_all
from jetvit.cost_model.measuring.measurement import this_machine
from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.measuring.table import TableWriter

_SWEEP_S = 240.0  # of one run at most
_PASSES, _DRY_OPERATIONS = 3, 6


def all_steps(dry: bool) -> list[Step]:
    """Return the steps of all sections, the most telling first."""
    timed = end_to_end.steps(dry)
    found = [*kernel_steps.steps(dry), *model_steps.steps(dry, timed), *timed, *breakdown.steps(dry)]
    found += [*operator_tests.steps(dry), *search_step.steps(dry)]
    sweep_cost = Cost(30, 30, "half of the time that is left, 30 to 240 s", dry_s=15)
    found.append(Step("latency sweep", 35, sweep_cost, 420, lambda campaign: False, _sweep))
    return sorted(found, key=lambda step: step.value)


def _sweep(campaign: Campaign, seconds: float) -> None:
    """Measure single operations, as `jetvit measure` does: the table that plans are made from."""
    machine = this_machine(campaign.device, __version__)
    with TableWriter(campaign.path(machine.file_name), machine) as writer:
        outcome = measure_all(
            _operations(campaign.dry),
            writer,
            campaign.device,
            budget_s=time_slice_s(seconds, _SWEEP_S),
            passes=1 if campaign.dry else _PASSES,
            say=lambda text: print(f"  {text}", flush=True),
        )
    print(f"  {outcome.written} rows", flush=True)
    if outcome.left:
        raise TimeOver(f"{len(outcome.left)} operations are left")


def _operations(dry: bool) -> list[Operation]:
    if dry:
        found = sweep.operations(sweep.SMALL_MODELS, [(64, 96)], dtypes=["float32"], gpu=False)
        return sweep.spread(found)[:_DRY_OPERATIONS]
    return sweep.spread(sweep.operations(sweep.MODELS, sweep.SIZES))
