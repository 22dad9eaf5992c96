"""`Latencies`: what an operation takes on one machine, measured where it was measured, else predicted."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Self

from jetvit.cost_model.measuring.measurement import Machine, Measurement
from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.predicting.conformal import Calibration
from jetvit.cost_model.predicting.estimate import Answer
from jetvit.cost_model.predicting.kernel_model import KernelModel
from jetvit.cost_model.predicting.predictor import Predictor
from jetvit.cost_model.predicting.roofline import Device, kernel_of


class UnknownLatency(LookupError):
    """An operation was not measured, and nothing predicts it."""


class Latencies:
    """Answers for the operations of one machine; call it with an `Operation`.

    Args:
        measurements: all of one machine. Operations of one `key` are one; of several rows the medians of median and
            quartiles count.
        predictor: for what was not measured.
        why_not: for kernels (`kernel_of`) that the predictor does not know, the reason.

    Raises:
        ValueError: the measurements are of several machines, or the predictor is of another device.
    """

    def __init__(
        self,
        measurements: Sequence[Measurement],
        predictor: Predictor | None = None,
        why_not: dict[str, str] | None = None,
    ):
        machine = _machine(measurements)
        if predictor is not None and machine is not None and predictor.device != _device(machine):
            raise ValueError(f"the predictor is of {predictor.device}, the measurements of {_device(machine)}")
        self._predictor, self._why_not = predictor, dict(why_not or {})
        self._known = _answers(measurements)  # and what was predicted since

    @classmethod
    def fit(cls, measurements: Sequence[Measurement], *, seed: int = 0) -> Self:
        """With a predictor that is fitted to the measurements (`fit_predictor`, which says what it raises)."""
        return cls(measurements, *fit_predictor(measurements, seed=seed))

    def __call__(self, operation: Operation) -> Answer:
        """The latency of an operation.

        Raises:
            UnknownLatency: it was not measured, and nothing predicts it.
        """
        key = operation.key
        if (answer := self._known.get(key)) is not None:
            return answer
        kernel = kernel_of(operation)
        if self._predictor is None or kernel not in self._predictor.models:
            measured = any(kernel_of(each) == kernel for each in self._known)
            why = f"there are too few measurements of {kernel}" if measured else f"no {kernel} was measured"
            reason = self._why_not.get(kernel, why)
            raise UnknownLatency(f"{operation}: not measured, and not predicted: {reason}")
        found = self._predictor.predict(key)
        self._known[key] = Answer(found.ms, found.low, found.high, "predicted", found.extrapolated)
        return self._known[key]


def fit_predictor(measurements: Sequence[Measurement], *, seed: int = 0) -> tuple[Predictor, dict[str, str]]:
    """A predictor of the kernels that have rows enough for one, and of each other kernel the reason why it has none.

    Args:
        measurements: all of one machine; their order does not matter.
        seed: of the folds that are held out.

    Raises:
        ValueError: there are no measurements, or they are of several machines.
    """
    machine = _machine(measurements)
    if machine is None:
        raise ValueError("there are no measurements")
    device = _device(machine)
    kernels: dict[str, list[Measurement]] = defaultdict(list)
    for measurement in measurements:
        kernels[kernel_of(measurement.operation)].append(measurement)
    models: dict[str, KernelModel] = {}
    calibrations: dict[str, Calibration] = {}
    why_not: dict[str, str] = {}
    for kernel, rows in sorted(kernels.items()):
        operations = [row.operation.key for row in rows]
        try:
            fitted = Predictor.fit(operations, [row.latency.median_ms for row in rows], device, seed=seed)
        except ValueError as error:
            why_not[kernel] = str(error)
        else:
            models |= fitted.models
            calibrations |= fitted.calibrations
    return Predictor(device, models, calibrations), why_not


def _machine(measurements: Iterable[Measurement]) -> Machine | None:
    """The one machine of all, None of none. Raises ValueError for several."""
    machines = {measurement.machine for measurement in measurements}
    if len(machines) > 1:
        raise ValueError("the measurements are of several machines: " + "; ".join(sorted(map(repr, machines))))
    return next(iter(machines), None)


def _device(machine: Machine) -> Device:
    return Device(machine.device, machine.multiprocessors)


def _answers(measurements: Iterable[Measurement]) -> dict[Operation, Answer]:
    rows: dict[Operation, list[Measurement]] = defaultdict(list)
    for measurement in measurements:
        rows[measurement.operation.key].append(measurement)
    return {
        operation: Answer(
            statistics.median(row.latency.median_ms for row in same),
            statistics.median(row.latency.q25_ms for row in same),
            statistics.median(row.latency.q75_ms for row in same),
            "measured",
        )
        for operation, same in rows.items()
    }
