"""All steps of a campaign, in order of value, and the sweep for the cost model as one of them."""

from __future__ import annotations

from benchmarks import breakdown, end_to_end, kernel_steps, suite
from benchmarks.campaign import Campaign, Step, TimeOver
from jetvit import __version__
from jetvit.cost_model import sweep
from jetvit.cost_model.measure import measure_all
from jetvit.cost_model.measurement import this_machine
from jetvit.cost_model.operation import Operation
from jetvit.cost_model.table import TableWriter
from jetvit.search.calibration import device_name

_SWEEP_S = 240.0  # of one run, which has more to do
_PASSES, _DRY_OPERATIONS = 3, 6


def all_steps(dry: bool) -> list[Step]:
    """The steps of all sections, the most telling first."""
    sections = (kernel_steps, end_to_end, breakdown, suite)
    found = [step for section in sections for step in section.steps(dry)]
    found.append(Step("latency sweep", 45, 420, lambda campaign: False, _sweep))
    return sorted(found, key=lambda step: step.value)


def _sweep(campaign: Campaign, seconds: float) -> None:
    """What `jetvit measure` does: the table that plans are made from, for as long as there is time."""
    machine = this_machine(campaign.device, device_name(campaign.device), __version__)
    with TableWriter(campaign.path(machine.file_name), machine) as writer:
        outcome = measure_all(
            _operations(campaign.dry),
            writer,
            campaign.device,
            budget_s=min(seconds, _SWEEP_S),
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
