"""The latency of a whole graph from those of its operations.

Operations measured alone do not add up to a model: kernels overlap at their ends, caches are warm, the host launches,
and some of the graph no operation stands for. So the sum is corrected by three terms, fitted on whole models that were
measured on the same device: T = fixed + launch · (number of launches) + overlap · Σ operations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jetvit.cost_model.measuring.graph_operations import GraphOperations
from jetvit.cost_model.measuring.operation import Operation
from jetvit.patterns.wording import counted


@dataclass(frozen=True)
class Answer:
    """The latency of one operation in ms, an interval around it, and where it comes from.

    extrapolated: predicted beyond the sizes that were measured.
    """

    ms: float
    low: float
    high: float
    source: Literal["measured", "predicted"]
    extrapolated: bool = False


@dataclass(frozen=True)
class Part:
    """The share of one operation in a graph: `count` times `answer`."""

    operation: Operation
    count: int
    answer: Answer


@dataclass(frozen=True)
class Run:
    """A whole model that was measured: the sum of its operations alone, its launches, and its latency in ms."""

    sum_ms: float
    launches: int
    measured_ms: float


@dataclass(frozen=True)
class Overheads:
    """The three terms; by default the plain sum.

    fixed_ms: what every run takes. launch_ms: what every launch adds. overlap: what is left of the sum. error: how far
    off the sums are, relative, nine times out of ten.
    """

    fixed_ms: float = 0.0
    launch_ms: float = 0.0
    overlap: float = 1.0
    error: float = 0.0

    @classmethod
    def fit(cls, runs: Sequence[Run]) -> Overheads:
        """The terms, none below zero, of least relative error on the runs.

        Raises:
            ValueError: the runs cannot tell the terms apart, or one has no latency.
        """
        if any(run.measured_ms <= 0 for run in runs):
            raise ValueError("a run has no latency above 0")
        terms = np.array([[1.0, run.launches, run.sum_ms] for run in runs]).reshape(-1, 3)
        scale = terms.max(axis=0, initial=1e-300)
        rank = np.linalg.matrix_rank(terms / scale, tol=1e-6)
        if rank < 3:
            raise ValueError(
                f"{counted(len(runs), 'run determines', 'runs determine')} {rank} of three terms: "
                "measure models of other depths and other sizes"
            )
        from scipy.optimize import nnls

        measured = np.array([run.measured_ms for run in runs])
        solution, _ = nnls(terms / scale / measured[:, None], np.ones(len(runs)))
        fixed, launch, overlap = (float(x) for x in solution / scale)
        return cls(fixed, launch, overlap)

    def apply(self, sum_ms: float, launches: int) -> float:
        """The latency of a graph in ms."""
        return self.fixed_ms + self.launch_ms * launches + self.overlap * sum_ms


@dataclass(frozen=True)
class Estimate:
    """The latency of a graph in ms, an interval around it, and what it is made of, the largest part first.

    The interval takes the errors of the parts to be alike, all high or all low, with the error of the sum on top.
    others: calls that no part stands for, by operator; the fixed and launch terms hold them.
    """

    ms: float
    low: float
    high: float
    parts: tuple[Part, ...]
    others: Counter[str]

    @property
    def measured_share(self) -> float:
        """How much of the sum was measured and not predicted, from 0 to 1."""
        total = sum(part.count * part.answer.ms for part in self.parts)
        measured = sum(part.count * part.answer.ms for part in self.parts if part.answer.source == "measured")
        return measured / total if total else 1.0

    @property
    def extrapolated(self) -> bool:
        """Whether any part was predicted beyond the sizes that were measured."""
        return any(part.answer.extrapolated for part in self.parts)


def estimate(
    operations: GraphOperations, look_up: Callable[[Operation], Answer], overheads: Overheads | None = None
) -> Estimate:
    """The latency of a graph.

    Args:
        operations: what it runs.
        look_up: the latency of one operation.
        overheads: the fitted terms of the device; without them the plain sum.
    """
    overheads = overheads or Overheads()
    parts = [Part(operation, count, look_up(operation)) for operation, count in operations.counted.items()]
    parts.sort(key=lambda part: (-part.count * part.answer.ms, str(part.operation)))

    def total(which: Literal["ms", "low", "high"]) -> float:
        return overheads.apply(sum(part.count * getattr(part.answer, which) for part in parts), operations.launches)

    low, high = total("low") / (1 + overheads.error), total("high") * (1 + overheads.error)
    return Estimate(total("ms"), low, high, tuple(parts), operations.others)
