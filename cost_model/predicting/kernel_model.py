"""`KernelModel`: the learned latency of one kernel on one device, a roofline with a correction by trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.predicting.conformal import Calibration, calibrate
from jetvit.cost_model.predicting.monotone import monotone
from jetvit.cost_model.predicting.roofline import Array, Device, Roofline, element_bytes_of, sizes_of
from jetvit.cost_model.predicting.trees import Forest


@dataclass(frozen=True, eq=False)
class KernelModel:
    """log ms of one kernel (`kernel_of`). `smallest` and `largest` [len(SIZES) + 1]: what was measured, flops last."""

    roofline: Roofline
    forest: Forest
    smallest: Array
    largest: Array

    @classmethod
    def fit(cls, operations: Sequence[Operation], log_ms: Array, device: Device, *, seed: int = 0) -> KernelModel:
        """A model of operations of one kernel and the logarithms of their milliseconds [n]. Needs scikit-learn."""
        sizes, first = sizes_of(operations), operations[0]
        roofline = Roofline.fit(first.op, element_bytes_of(first), device, sizes, log_ms)
        forest = Forest.fit(roofline.features(sizes), log_ms - roofline.log_ms(sizes), seed=seed)
        hull = _hull_columns(operations, sizes)
        return cls(roofline, forest, hull.min(0), hull.max(0))

    def log_ms(self, operations: Sequence[Operation]) -> Array:
        """The logarithm of milliseconds [n], never falling with batch, tokens or what a window sees."""
        roofline, forest = self.roofline, self.forest
        return monotone(
            sizes_of(operations),
            roofline.log_ms,
            lambda sizes: forest(roofline.features(sizes)),
            forest.low,
            forest.high,
            batches=roofline.op == "full",
        )

    def roofline_log_ms(self, operations: Sequence[Operation]) -> Array:
        """`log_ms` before the trees correct it, [n]."""
        return self.roofline.log_ms(sizes_of(operations))

    def is_extrapolated(self, operations: Sequence[Operation]) -> np.ndarray:
        """Whether any size, or the flops, is outside the range that was measured of this kernel, [n]."""
        columns = _hull_columns(operations, sizes_of(operations))
        return np.any((columns < self.smallest) | (columns > self.largest), axis=1)


def calibrate_kernel(
    operations: Sequence[Operation], log_ms: Array, device: Device, *, by: Sequence[str] | None = None, seed: int = 0
) -> Calibration:
    """The interval of a `KernelModel` of these rows. `by` names the family of each row, by default the operation's."""

    def fit_and_predict(learn: np.ndarray) -> Array:
        known = [x for x, is_known in zip(operations, learn, strict=True) if is_known]
        model = KernelModel.fit(known, log_ms[learn], device, seed=seed)
        return model.log_ms([x for x, is_known in zip(operations, learn, strict=True) if not is_known])

    families = [x.family for x in operations] if by is None else by
    return calibrate(fit_and_predict, log_ms, families, [(x.batch, x.tokens) for x in operations], seed=seed)


def _hull_columns(operations: Sequence[Operation], sizes: Array) -> Array:
    return np.column_stack([sizes, np.array([x.flops for x in operations], np.float64)])
