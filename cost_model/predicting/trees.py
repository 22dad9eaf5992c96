"""`Forest`: boosted regression trees as plain arrays, evaluated with numpy alone. scikit-learn only grows them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jetvit.patterns.wording import counted

Array = NDArray[np.float64]

# Chosen by the error on held-out rows (100 to 1500 to learn from) of the layers of one language model, Llama-2-7B, in
# the file of `benchmarks.cost_model.gemm`, out of six settings. A random half of the features at every split, and
# the mean of a few ensembles, is worth most when rows are few.
_MEMBERS = 2
_SETTINGS = {
    "learning_rate": 0.1,
    "max_iter": 250,
    "min_samples_leaf": 4,
    "max_leaf_nodes": 16,
    "l2_regularization": 1.0,
    "max_features": 0.4,
    "early_stopping": False,
}
_CHUNK = 1 << 15  # Rows × trees at a time: what a core's cache holds.


@dataclass(frozen=True, eq=False)
class Forest:
    """A sum of trees, all their nodes in one list.

    roots [trees]; feature, threshold, left, right, value [nodes]. A row goes left where its feature is at most the
    threshold. feature is -1 at a leaf, whose left and right are the leaf itself. The sum is clipped to low … high.
    """

    roots: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: Array
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    value: Array
    base: float
    low: float
    high: float
    features: int

    @classmethod
    def fit(cls, features: Array, target: Array, *, seed: int = 0) -> Forest:
        """Trees that fit target [n] from features [n, features]. Needs scikit-learn."""
        from sklearn.ensemble import HistGradientBoostingRegressor
        from threadpoolctl import threadpool_limits

        parts: dict[str, list[NDArray]] = {name: [] for name in ("feature", "threshold", "left", "right", "value")}
        roots: list[int] = []
        count, base = 0, 0.0
        for member in range(_MEMBERS):
            # Few rows: threads gain nothing, and on a busy machine they wait for each other far longer than they work.
            with threadpool_limits(1):
                grown = HistGradientBoostingRegressor(**_SETTINGS, random_state=seed + member).fit(features, target)
            base += float(np.ravel(grown._baseline_prediction)[0]) / _MEMBERS
            for (tree,) in grown._predictors:
                nodes = tree.nodes
                leaf, own = nodes["is_leaf"].astype(bool), np.arange(len(nodes)) + count
                parts["feature"].append(np.where(leaf, -1, nodes["feature_idx"]))
                parts["threshold"].append(np.where(leaf, 0.0, nodes["num_threshold"]))
                parts["left"].append(np.where(leaf, own, nodes["left"].astype(np.int64) + count))
                parts["right"].append(np.where(leaf, own, nodes["right"].astype(np.int64) + count))
                parts["value"].append(np.where(leaf, nodes["value"] / _MEMBERS, 0.0))
                roots.append(count)
                count += len(nodes)
        whole = {name: np.concatenate(part) for name, part in parts.items()}
        for name in ("feature", "left", "right"):
            whole[name] = whole[name].astype(np.int64)
        forest = cls(
            np.array(roots, np.int64), **whole, base=base, low=-np.inf, high=np.inf, features=features.shape[1]
        )
        # What no row asked for is no more trusted than the extremes of what rows did ask for; a narrow range also keeps
        # the monotone envelope local.
        seen = forest(features)
        return cls(**{**vars(forest), "low": float(seen.min()), "high": float(seen.max())})

    def __call__(self, features: Array) -> Array:
        """The sum at features [n, features], [n]."""
        out = np.empty(len(features))
        trees = len(self.roots)
        step = max(1, _CHUNK // trees)
        asked = np.maximum(self.feature, 0)  # At a leaf any feature will do: left and right are the leaf.
        child = np.stack([self.right, self.left], 1).ravel()
        for start in range(0, len(features), step):
            rows = np.ascontiguousarray(features[start : start + step])
            flat, place = rows.ravel(), np.repeat(np.arange(len(rows)) * self.features, trees)
            node = np.tile(self.roots, len(rows))
            while True:
                goes_left = flat.take(place + asked.take(node)) <= self.threshold.take(node)
                below = child.take(2 * node + goes_left)
                if np.array_equal(below, node):
                    break
                node = below
            out[start : start + step] = self.value.take(node).reshape(len(rows), trees).sum(1)
        return np.clip(out + self.base, self.low, self.high)

    def check(self) -> None:
        """Raise ValueError, saying what is wrong, for arrays whose evaluation could fail or never end."""
        nodes = len(self.value)
        for name, kind in (("roots", np.int64), ("feature", np.int64), ("left", np.int64), ("right", np.int64)):
            array = getattr(self, name)
            if array.ndim != 1 or array.dtype != kind:
                raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, not a list of {kind.__name__}")
        for name in ("threshold", "value"):
            array = getattr(self, name)
            if array.ndim != 1 or array.dtype != np.float64:
                raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, not a list of float64")
        for name in ("feature", "threshold", "left", "right"):
            if len(getattr(self, name)) != nodes:
                raise ValueError(
                    f"{name} has {counted(len(getattr(self, name)), 'entry', 'entries')} for {counted(nodes, 'node')}"
                )
        leaf, own = self.feature == -1, np.arange(nodes)
        if not ((self.feature >= -1) & (self.feature < self.features)).all():
            raise ValueError(f"a node asks for a feature that is none of the {self.features}")
        if np.isnan(self.threshold).any() or not np.isfinite(self.value).all():
            raise ValueError("a threshold or a value is not a number")
        for child in (self.left, self.right):
            if not (child < nodes).all() or not np.where(leaf, child == own, child > own).all():
                raise ValueError("a child does not come after its parent")
        if not len(self.roots):
            raise ValueError("there is no tree")
        if not ((self.roots >= 0) & (self.roots < nodes)).all():
            raise ValueError("a root is no node")
        if not (np.isfinite([self.base, self.low, self.high]).all() and self.low <= self.high):
            raise ValueError(f"the sum goes from {self.low} to {self.high}, with {self.base} at first")
