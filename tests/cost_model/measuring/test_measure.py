"""The loop of a sweep: each operation once, within the time, and what fails does not end it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from jetvit.cost_model.measuring import measure as module
from jetvit.cost_model.measuring import steadiness
from jetvit.cost_model.measuring.measure import Outcome, measure_all, measure_operation
from jetvit.cost_model.measuring.measurement import this_machine
from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.measuring.sweep import ModelShape, operations, spread
from jetvit.cost_model.measuring.table import TableWriter, read_table
from jetvit.cost_model.measuring.timing import Latency
from jetvit.patterns.errors import InputError
from tests.cost_model.tables import MACHINE, add

CPU = torch.device("cpu")
OPERATIONS = [add(width) for width in range(1, 9)]


class Clock:
    """A time that only measurements move. In the next `busy` of them the process waits for a core half of the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = self.waited = 0.0
        self.busy = 0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        monkeypatch.setattr(steadiness, "_waited_s", lambda: self.waited)

    def measure(self, cost: Callable[[Operation], float] = lambda operation: 1.0) -> module.Measure:
        """A measurement that takes `cost` seconds."""

        def measure(operation: Operation, device: torch.device) -> tuple[Latency, str]:
            self.now += cost(operation)
            if self.busy > 0:
                self.busy -= 1
                self.waited += cost(operation) / 2
            return Latency(1.0, 1.0, 1.0, 3), "test"

        return measure


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nothing else runs."""
    monkeypatch.setattr(steadiness, "_waited_s", lambda: 0.0)
    monkeypatch.setattr(steadiness, "_load", lambda: None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, quiet: None) -> Clock:
    return Clock(monkeypatch)


def sweep(path: Path, measure: module.Measure, **options: object) -> Outcome:
    with TableWriter(path, MACHINE) as writer:
        return measure_all(OPERATIONS, writer, CPU, **({"budget_s": 100.0} | options), measure=measure)  # type: ignore[arg-type]


def widths(path: Path) -> list[int]:
    return [row.operation.inputs for row in read_table(path)]


def test_every_operation_once_and_in_order(tmp_path: Path, clock: Clock):
    path = tmp_path / "t.csv"
    seen: list[tuple[int, int, float]] = []
    outcome = sweep(path, clock.measure(), progress=lambda *args: seen.append(args))
    assert outcome == Outcome(written=8)
    assert widths(path) == list(range(1, 9))
    assert seen == [(done, 8, 100.0 - done) for done in range(9)]
    assert sweep(path, clock.measure()) == Outcome(known=8)
    assert len(read_table(path)) == 8


def test_several_passes_are_apart(tmp_path: Path, clock: Clock):
    path = tmp_path / "t.csv"
    seen: list[tuple[int, int, float]] = []
    assert sweep(path, clock.measure(), passes=2, progress=lambda *args: seen.append(args)) == Outcome(written=16)
    assert widths(path) == [*range(1, 9), *range(1, 9)]
    assert [(done, total) for done, total, _ in seen] == [(done, 16) for done in range(17)]
    assert sweep(path, clock.measure(), passes=3).written == 8
    assert sweep(path, clock.measure(), passes=2) == Outcome(known=8)


def test_passes_within_the_time(tmp_path: Path, clock: Clock):
    path = tmp_path / "t.csv"
    outcome = sweep(path, clock.measure(), passes=3, budget_s=10.5)
    assert (outcome.written, outcome.left) == (10, [*OPERATIONS[2:], *OPERATIONS[:2]])
    assert widths(path) == [*range(1, 9), 1, 2]
    outcome = sweep(path, clock.measure(), passes=2)
    assert (outcome.known, outcome.written) == (2, 6)
    assert widths(path) == [*range(1, 9), *range(1, 9)]


def test_what_cannot_run_is_tried_once(tmp_path: Path, clock: Clock):
    tried: list[int] = []
    seen: list[tuple[int, int, float]] = []

    def measure(operation: Operation, device: torch.device) -> tuple[Latency, str]:
        tried.append(operation.inputs)
        if operation.inputs == 3:
            raise MemoryError
        return clock.measure()(operation, device)

    outcome = sweep(tmp_path / "t.csv", measure, passes=3, progress=lambda *args: seen.append(args))
    assert (tried.count(3), len(outcome.skipped), outcome.written) == (1, 1, 21)
    assert seen[-1][:2] == (22, 22)


def test_a_row_of_a_busy_moment_is_timed_again(tmp_path: Path, clock: Clock):
    path = tmp_path / "t.csv"
    clock.busy = 2
    assert sweep(path, clock.measure()) == Outcome(written=8)
    assert clock.now == 10
    assert widths(path) == list(range(1, 9))


def test_a_row_that_stays_busy_is_left_out_and_measured_by_the_next_run(tmp_path: Path, clock: Clock):
    path = tmp_path / "t.csv"
    clock.busy = 4
    outcome = sweep(path, clock.measure())
    assert outcome == Outcome(written=7, busy=[(add(1), "the process waited for a core 50% of the time")])
    assert (clock.now, widths(path)) == (3 + 2 + 6, list(range(2, 9)))
    assert sweep(path, clock.measure()) == Outcome(known=7, written=1)
    assert widths(path) == [*range(2, 9), 1]


def test_a_later_pass_takes_a_row_that_was_left_out(tmp_path: Path, clock: Clock):
    path = tmp_path / "t.csv"
    clock.busy = 3
    outcome = sweep(path, clock.measure(), passes=2)
    assert (outcome.written, len(outcome.busy)) == (15, 1)
    assert widths(path) == [*range(2, 9), *range(1, 9)]
    assert sweep(path, clock.measure(), passes=2) == Outcome(known=7, written=1)


def test_no_busy_row_is_repeated_beyond_the_time(tmp_path: Path, clock: Clock):
    clock.busy = 100
    order = OPERATIONS[::-1]  # whose times are known to be no longer than that of the first
    with TableWriter(tmp_path / "t.csv", MACHINE) as writer:
        outcome = measure_all(order, writer, CPU, budget_s=4.5, measure=clock.measure())
    assert (outcome.written, len(outcome.busy), clock.now) == (0, 2, 4)
    assert outcome.left == order[2:]


def test_a_gpu_row_is_the_time_of_kernels_whatever_the_host_waits(tmp_path: Path, clock: Clock):
    clock.busy = 100
    with TableWriter(tmp_path / "t.csv", MACHINE) as writer:
        outcome = measure_all(OPERATIONS, writer, torch.device("cuda"), budget_s=100, measure=clock.measure())
    assert outcome == Outcome(written=8)
    assert clock.now == 8


def test_doubled_operations_are_one(tmp_path: Path, clock: Clock):
    with TableWriter(tmp_path / "t.csv", MACHINE) as writer:
        outcome = measure_all([add(1), add(1)], writer, CPU, budget_s=9, measure=clock.measure())
    assert outcome == Outcome(written=1)


def test_the_time_ends_it_and_the_next_run_goes_on(tmp_path: Path, clock: Clock):
    path = tmp_path / "t.csv"
    outcome = sweep(path, clock.measure(), budget_s=3.5)
    assert (outcome.written, outcome.left) == (3, OPERATIONS[3:])
    assert clock.now == 3
    outcome = sweep(path, clock.measure())
    assert (outcome.known, outcome.written, outcome.left) == (3, 5, [])
    assert widths(path) == list(range(1, 9))


def test_what_would_not_fit_is_put_off(tmp_path: Path, clock: Clock):
    path = tmp_path / "t.csv"
    small, large = [add(width, grid_h=10) for width in (1, 2, 3)], add(1000, grid_h=1000)
    with TableWriter(path, MACHINE) as writer:
        order = [small[0], large, *small[1:]]
        cost = clock.measure(lambda operation: operation.inputs)
        outcome = measure_all(order, writer, CPU, budget_s=50, measure=cost)
    assert [row.operation for row in read_table(path)] == small
    assert outcome.left == [large]
    with TableWriter(path, MACHINE) as writer:  # the table tells it at once
        assert measure_all([large], writer, CPU, budget_s=50, measure=cost).left == [large]
        assert measure_all([large], writer, CPU, budget_s=10**9, measure=cost).written == 1


def test_what_cannot_run_is_skipped_with_its_reason(tmp_path: Path, clock: Clock):
    errors = {
        3: torch.OutOfMemoryError("CUDA out of memory. Tried"),
        5: MemoryError(),
        6: RuntimeError("no kernel\nat"),
    }

    def measure(operation: Operation, device: torch.device) -> tuple[Latency, str]:
        if operation.inputs in errors:
            raise errors[operation.inputs]
        return clock.measure()(operation, device)

    said: list[str] = []
    path = tmp_path / "t.csv"
    outcome = sweep(path, measure, say=said.append)
    reasons = ["out of memory", "out of memory", "no kernel"]
    assert outcome.skipped == [(add(width), reason) for width, reason in zip((3, 5, 6), reasons, strict=True)]
    assert said == [f"skipped {operation}: {reason}" for operation, reason in outcome.skipped]
    assert widths(path) == [1, 2, 4, 7, 8]


def test_a_kernel_that_does_not_fit_is_skipped(tmp_path: Path):
    # Triton's own exceptions are no RuntimeErrors.
    too_large = pytest.importorskip("triton.runtime.errors").OutOfResources(300_000, 232_448, "shared memory")

    def measure(operation: Operation, device: torch.device) -> tuple[Latency, str]:
        if operation.inputs == 3:
            raise too_large
        return Latency(1.0, 1.0, 1.0, 3), "test"

    outcome = sweep(tmp_path / "t.csv", measure)
    assert widths(tmp_path / "t.csv") == [1, 2, 4, 5, 6, 7, 8]
    ((skipped, reason),) = outcome.skipped
    assert (skipped, "shared memory" in reason) == (add(3), True)


def test_a_defect_is_not_skipped(tmp_path: Path):
    def measure(operation: Operation, device: torch.device) -> tuple[Latency, str]:
        raise TypeError("a defect")

    with pytest.raises(TypeError, match="a defect"):
        sweep(tmp_path / "t.csv", measure)


def test_an_interrupt_keeps_the_rows(tmp_path: Path, clock: Clock):
    def measure(operation: Operation, device: torch.device) -> tuple[Latency, str]:
        if operation.inputs == 4:
            raise KeyboardInterrupt
        return clock.measure()(operation, device)

    path = tmp_path / "t.csv"
    with pytest.raises(KeyboardInterrupt):
        sweep(path, measure)
    assert widths(path) == [1, 2, 3]


def test_a_device_that_failed_for_good_ends_it(monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch, "ones", fail)
    with pytest.raises(InputError, match="the device cuda no longer works"):
        module._recover(torch.device("cuda"))


def test_too_large_for_the_memory():
    with pytest.raises(MemoryError, match="needs more than"):
        measure_operation(Operation("add", "float32", 2**20, 2**10, 2**10, inputs=2**10), CPU)


def test_the_pace_is_that_of_the_nearest():
    pace = module._Pace()
    assert pace.estimate_s(add(8)) == 0
    pace.add(add(8), 2.0)
    assert pace.estimate_s(add(80)) == pytest.approx(20)
    assert pace.estimate_s(add(1)) == 2
    assert pace.estimate_s(Operation("gelu", "float32", 1, 2, 3, inputs=8)) == 2
    pace.add(add(80), 3.0)
    assert pace.estimate_s(add(160)) == pytest.approx(6)


def test_a_real_sweep(tmp_path: Path):
    order = spread(operations({"m": ModelShape(2, 16, 16, 1, True)}, [(160, 192)], dtypes=["float32"], gpu=False))
    machine = replace(this_machine(CPU, "0.1.0"), device="some CPU")
    path = tmp_path / machine.file_name
    with TableWriter(path, machine) as writer:
        outcome = measure_all(order, writer, CPU, budget_s=60, measure=partial(measure_operation, time_limit_s=0.01))
    assert outcome == Outcome(written=len(order))
    rows = read_table(path)
    assert [row.operation for row in rows] == order
    assert all(row.machine == machine and row.latency.reps >= 3 for row in rows)
    assert (machine.multiprocessors, machine.torch) == (torch.get_num_threads(), torch.__version__)


def test_a_latency_grows_with_the_work():
    small, large = (Operation("gemm", "float32", 1, 16, side, inputs=64, outputs=64) for side in (4, 256))
    latencies = [measure_operation(each, CPU, time_limit_s=0.05)[0].median_ms for each in (small, large)]
    assert latencies[1] > 3 * latencies[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_measures_every_kind(tmp_path: Path):
    device = torch.device("cuda")
    machine = this_machine(device, "0.1.0")
    order = spread(operations({"m": ModelShape(4, 64, 16, 5, True)}, [(512, 512)]))
    with TableWriter(tmp_path / "t.csv", machine) as writer:
        outcome = measure_all(order, writer, device, budget_s=300)
    assert outcome.written + len(outcome.skipped) == len(order)
    assert all(operation.backend for operation, _ in outcome.skipped)
    assert {row.operation.op for row in read_table(tmp_path / "t.csv")} == {each.op for each in order}
    assert any("CUDA graph" in row.config for row in read_table(tmp_path / "t.csv"))
