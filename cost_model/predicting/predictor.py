"""`Predictor`: the latency of operations that were never measured, from those that were, on one device.

The latency of a kernel is a roofline (`roofline.py`, constants fitted) times a correction by trees, made monotone
(`monotone.py`), with intervals by `conformal.py`. Fitting needs scikit-learn; predicting, saving and loading need numpy
alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.predicting import predictor_file
from jetvit.cost_model.predicting.conformal import MIN_ROWS, Calibration
from jetvit.cost_model.predicting.kernel_model import KernelModel, calibrate_kernel
from jetvit.cost_model.predicting.roofline import Device, kernel_of
from jetvit.patterns.wording import counted


@dataclass(frozen=True)
class Prediction:
    """Milliseconds a call, a 90 % interval, and whether the call is larger or smaller than all that was measured.

    `extrapolated`: outside the range measured of its kernel, by rows (full attention: by batch or tokens), keys that a
    window sees, features, outputs, heads, head_dim, window, conv_size, rope or flops. The interval is meant for a new
    family of shapes inside that range, and promises nothing outside it.
    """

    ms: float
    low: float
    high: float
    extrapolated: bool


@dataclass(frozen=True, eq=False)
class Predictor:
    """Models by kernel (`kernel_of`: op, dtype and backend or feature map) and their calibrations, of one device.

    A kernel has a model of its own: what its sizes mean, and which peak it comes near, is its own, and measuring more
    of one must not move the predictions of another. fitted_to: what names the measurements, for whoever keeps both.

    For operations that are alike but for their sizes, ms never falls as batch, grid_h, grid_w or extra grow; of window
    attention where window_tokens does not shrink meanwhile: grids that cut into smaller balanced windows do less work.
    """

    device: Device
    models: Mapping[str, KernelModel]
    calibrations: Mapping[str, Calibration]
    fitted_to: str = ""

    @classmethod
    def fit(
        cls, operations: Sequence[Operation], latencies_ms: Sequence[float], device: Device, *, seed: int = 0
    ) -> Predictor:
        """Learn from measurements, all of `device`. The order of the rows does not matter; rows of one
        `Operation.key` are merged by their median.

        Raises ValueError for latencies that are not positive and finite, and for a kernel with too few rows to say how
        sure its predictions are: fewer than 10 operations, or all of one batch and tokens in fewer than 5 families.
        """
        models, calibrations = {}, {}
        for kernel, measured in by_kernel(operations, latencies_ms).items():
            known = [x for x, _ in measured]
            log_ms = np.log([ms for _, ms in measured])
            try:
                calibrations[kernel] = calibrate_kernel(known, log_ms, device, seed=seed)
            except ValueError as error:
                raise ValueError(f"{kernel}: {error}") from None
            models[kernel] = KernelModel.fit(known, log_ms, device, seed=seed)
        return cls(device, models, calibrations)

    def predict(self, operation: Operation, *, device: str | None = None) -> Prediction:
        """The latency of one operation. Raises ValueError for another device, and for a kernel without measurements."""
        return self.predict_all([operation], device=device)[0]

    def predict_all(self, operations: Iterable[Operation], *, device: str | None = None) -> list[Prediction]:
        """`predict` of many, in their order: the same values in much less time for operations of the same families."""
        if device is not None and device != self.device.name:
            raise ValueError(f"latencies of {self.device.name} say nothing of {device}")
        asked = list(operations)
        places = defaultdict(list)
        for place, operation in enumerate(asked):
            places[kernel_of(operation)].append(place)
        predictions: dict[int, Prediction] = {}
        for kernel, where in places.items():
            if kernel not in self.models:
                known = ", ".join(sorted(self.models))
                raise ValueError(f"no {kernel} was measured on {self.device.name}; there are {known}")
            model, width = self.models[kernel], self.calibrations[kernel].half_width
            rows = [asked[place] for place in where]
            for place, log_ms, outside in zip(where, model.log_ms(rows), model.is_extrapolated(rows), strict=True):
                low, ms, high = (math.exp(value) for value in (log_ms - width, log_ms, log_ms + width))
                predictions[place] = Prediction(ms, low, high, bool(outside))
        return [predictions[place] for place in range(len(asked))]

    def save(self, path: str | Path) -> None:
        """Write a file that `load` reads: numbers and JSON, no code."""
        predictor_file.save(
            predictor_file.Content(self.device, dict(self.models), dict(self.calibrations), self.fitted_to), Path(path)
        )

    @staticmethod
    def load(path: str | Path) -> Predictor:
        """The inverse of `save`. Raises ValueError, naming what is wrong, for a broken or foreign file."""
        return Predictor(*predictor_file.load(Path(path)))


def by_kernel(
    operations: Sequence[Operation], latencies_ms: Sequence[float]
) -> dict[str, list[tuple[Operation, float]]]:
    """Keys of operations and their median latency by kernel, sorted, so that no order of rows is left to depend on."""
    if len(operations) != len(latencies_ms):
        pairs = f"{counted(len(operations), 'operation')} and {counted(len(latencies_ms), 'latency', 'latencies')}"
        raise ValueError(f"{pairs} are no pairs")
    if not operations:
        raise ValueError(f"there are no rows, and every kernel needs at least {MIN_ROWS}")
    samples = defaultdict(list)
    for operation, ms in zip(operations, latencies_ms, strict=True):
        if not (math.isfinite(ms) and ms > 0):
            raise ValueError(f"the latency of {operation} is {ms} ms")
        samples[operation.key].append(float(ms))
    kernels = defaultdict(list)
    for operation in sorted(samples, key=lambda x: tuple(vars(x).values())):
        kernels[kernel_of(operation)].append((operation, float(np.median(samples[operation]))))
    return dict(sorted(kernels.items()))
