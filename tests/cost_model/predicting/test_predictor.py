from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.predicting.conformal import MIN_ROWS, calibrate, quantile, split
from jetvit.cost_model.predicting.monotone import monotone
from jetvit.cost_model.predicting.predictor import Predictor
from jetvit.cost_model.predicting.roofline import BATCH, SIZES, TOKENS, round_up
from tests.cost_model.operations import DEVICE, grown_pairs, operations, rows, shape, synthetic_ms

MEASURED = ("gemm", "full", "window", "linear", "add")
ROWS = 80


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    known, ms = [], []
    for op in MEASURED:
        new, new_ms = rows(op, ROWS)
        known, ms = known + new, ms + new_ms
    return Predictor.fit(known, ms, DEVICE)


@pytest.fixture(scope="module")
def saved(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predictor") / "latency.npz"
    predictor.save(path)
    return path


@pytest.mark.parametrize("op", MEASURED)
def test_it_is_near_what_it_has_not_seen(predictor: Predictor, op: str):
    asked, _ = rows(op, 150, seed=1)
    predicted = predictor.predict_all(asked)
    true = np.array([synthetic_ms(x) for x in asked])
    assert np.median(np.abs([p.ms for p in predicted] / true - 1)) < 0.12
    held = [p.low <= ms <= p.high for p, ms in zip(predicted, true, strict=True)]
    assert np.mean(held) > 0.8


@settings(deadline=None, max_examples=60)
@given(grown_pairs(MEASURED))
@example((shape("full", 3, 8, 9, 9), shape("full", 3, 9, 9, 9)))
@example((shape("full", 3, 9, 9, 9), shape("full", 3, 10, 9, 9)))
def test_latency_never_falls_with_batch_or_tokens(predictor: Predictor, pair: tuple[Operation, Operation]):
    small, large = pair
    assume(small.op != "window" or small.window_tokens <= large.window_tokens)
    assert predictor.predict(small).ms <= predictor.predict(large).ms * (1 + 1e-12)


@pytest.mark.parametrize("op", ["gemm", "full"])
def test_latency_never_falls_anywhere_along_an_axis(predictor: Predictor, op: str):
    tokens = [p.ms for p in predictor.predict_all([shape(op, 2, 3, 1, side) for side in range(1, 2000)])]
    batches = [p.ms for p in predictor.predict_all([shape(op, 2, batch, 7, 9) for batch in range(1, 300)])]
    for ms in (tokens, batches):
        assert (np.diff(ms) >= -1e-12 * np.array(ms[1:])).all()


@settings(deadline=None, max_examples=10)
@given(st.lists(operations(MEASURED), min_size=1, max_size=5))
def test_a_prediction_does_not_depend_on_its_company(predictor: Predictor, asked: list[Operation]):
    together = predictor.predict_all(asked)
    for operation, prediction in zip(asked, together, strict=True):
        assert predictor.predict(operation).ms == pytest.approx(prediction.ms, rel=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.floats(0.0, 1.0))
def test_the_envelopes_keep_what_is_monotone_and_mend_what_is_not(seed: int, wild: float):
    rng = np.random.default_rng(seed)
    sizes = np.ones((30, len(SIZES)))
    sizes[:, BATCH] = rng.integers(1, 40, 30)
    sizes[:, TOKENS] = rng.integers(1, 5000, 30)

    def estimate(x: np.ndarray) -> np.ndarray:
        return np.log(1 + x[:, BATCH] * round_up(x[:, TOKENS]))

    def correction(x: np.ndarray) -> np.ndarray:
        return wild * np.sin(x[:, TOKENS] * 37 + x[:, BATCH] * 11 + seed)

    out = monotone(sizes, estimate, correction, -wild, wild, batches=True)
    assert (np.abs(out - estimate(sizes)) <= wild + 0.3).all()  # 0.3: between the batches of the lattice
    for row in range(30):
        beyond = (sizes[:, BATCH] >= sizes[row, BATCH]) & (sizes[:, TOKENS] >= sizes[row, TOKENS])
        assert (out[beyond] >= out[row] - 1e-12).all()
    small = sizes[:, BATCH] <= 8
    np.testing.assert_allclose(
        monotone(sizes, estimate, lambda x: 0 * x[:, 0], 0, 0, batches=True)[small], estimate(sizes)[small]
    )


def test_beyond_the_measured_sizes_is_flagged(predictor: Predictor):
    known, _ = rows("gemm", ROWS)
    assert not any(p.extrapolated for p in predictor.predict_all(known))
    largest = max(known, key=lambda x: x.rows)
    for change in ({"batch": 2 * largest.batch}, {"inputs": 1024}, {"outputs": 384}, {"inputs": 16}):
        assert predictor.predict(replace(largest, **change)).extrapolated
    assert predictor.predict(shape("full", 2, 500, 2, 2)).extrapolated


@pytest.mark.slow
def test_no_order_of_rows_and_no_repeats_change_it(predictor: Predictor):
    known, ms = rows("gemm", 40)
    mixed = list(zip(known, ms, strict=True)) * 3
    random.Random(1).shuffle(mixed)
    first = Predictor.fit(known, ms, DEVICE)
    second = Predictor.fit(*zip(*mixed, strict=True), DEVICE)
    asked, _ = rows("gemm", 50, seed=2)
    assert first.predict_all(asked) == second.predict_all(asked)
    assert first.predict_all(asked) == Predictor.fit(known, ms, DEVICE).predict_all(asked)


def test_a_kernel_does_not_move_another(predictor: Predictor):
    known, ms = rows("add", ROWS)
    alone = Predictor.fit(known, ms, DEVICE)
    assert alone.predict_all(known) == predictor.predict_all(known)


def test_what_was_not_measured_is_refused(predictor: Predictor):
    with pytest.raises(ValueError, match="no gelu float32 was measured on made up; there are add float32, full"):
        predictor.predict(shape("gelu", 1, 1, 2, 2))
    with pytest.raises(ValueError, match="no gemm bfloat16"):
        predictor.predict(replace(shape("gemm", 1, 1, 2, 2), dtype="bfloat16"))
    with pytest.raises(ValueError, match="latencies of made up say nothing of another"):
        predictor.predict(shape("gemm", 1, 1, 2, 2), device="another")
    assert predictor.predict_all([]) == []
    assert predictor.predict(shape("gemm", 1, 1, 2, 2), device="made up").ms > 0


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_latency_is_positive_and_finite(bad: float):
    known, ms = rows("add", 20)
    with pytest.raises(ValueError, match=f"the latency of add .* is {bad} ms"):
        Predictor.fit(known, [*ms[:-1], bad], DEVICE)


def test_too_few_rows_are_refused():
    known, ms = rows("add", MIN_ROWS - 1)
    with pytest.raises(ValueError, match="add float32: 9 rows"):
        Predictor.fit(known, ms, DEVICE)
    with pytest.raises(ValueError, match="10 operations and 9 latencies"):
        Predictor.fit([*known, known[0]], ms, DEVICE)
    with pytest.raises(ValueError, match="no rows"):
        Predictor.fit([], [], DEVICE)


def test_intervals_hold_out_whole_families():
    families = [f"f{i % 7}" for i in range(70)]
    held = []

    def fit_and_predict(learn: np.ndarray) -> np.ndarray:
        out = {family for family, known in zip(families, learn, strict=True) if not known}
        assert not out & {family for family, known in zip(families, learn, strict=True) if known}
        held.extend(out)
        return np.full((~learn).sum(), 0.25)

    calibration = calibrate(fit_and_predict, np.zeros(70), families, range(70))
    assert calibration == (0.25, "families")
    assert sorted(held) == sorted(set(families))


def test_few_families_hold_out_sizes_and_widen():
    sizes = [i // 2 for i in range(20)]

    def fit_and_predict(learn: np.ndarray) -> np.ndarray:
        assert not {sizes[i] for i in np.flatnonzero(learn)} & {sizes[i] for i in np.flatnonzero(~learn)}
        return np.full((~learn).sum(), 0.25)

    assert calibrate(fit_and_predict, np.zeros(20), ["a"] * 10 + ["b"] * 10, sizes) == (0.5, "sizes")
    with pytest.raises(ValueError, match=r"all rows \(20\) are of one size"):
        calibrate(fit_and_predict, np.zeros(20), ["a"] * 20, [1] * 20)


@given(st.integers(1, 300))
def test_the_quantile_is_that_of_a_new_score(count: int):
    scores = np.random.default_rng(count).permutation(count) + 1.0
    # A new score is below the r-th of n with probability r / (n + 1).
    assert quantile(scores) / (count + 1) >= 0.9
    if count >= 9:
        assert (quantile(scores) - 1) / (count + 1) < 0.9


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2), st.integers(0, 5))
def test_folds_are_of_whole_groups_and_none_is_empty(groups: list[str], seed: int):
    folds = split(groups, seed)
    assert len(set(zip(groups, folds.tolist(), strict=True))) == len(set(groups))
    assert set(folds.tolist()) == set(range(min(5, len(set(groups)))))


def test_saved_and_loaded_it_is_the_same(predictor: Predictor, saved: Path):
    loaded = Predictor.load(saved)
    assert loaded.device == predictor.device
    for op in MEASURED:
        asked, _ = rows(op, 12, seed=3)
        assert loaded.predict_all(asked) == predictor.predict_all(asked)


def test_loading_needs_no_scikit_learn(saved: Path):
    code = f"""
import sys
sys.modules["sklearn"] = sys.modules["scipy"] = None
from jetvit.cost_model.measuring.operation import Operation
from jetvit.cost_model.predicting.predictor import Predictor
print(Predictor.load({str(saved)!r}).predict(Operation("add", "float32", 1, 8, 8, inputs=128)).ms > 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


def rewritten(saved: Path, to: Path, **change: np.ndarray | None) -> Path:
    with np.load(saved) as file:
        arrays = {**file, **change}
    np.savez(to, **{name: array for name, array in arrays.items() if array is not None})
    return to


def _array(saved: Path, name: str) -> np.ndarray:
    with np.load(saved) as file:
        return file[name].copy()


def _changed(array: np.ndarray, place: int, value: float) -> np.ndarray:
    array[place] = value
    return array


BROKEN = {
    "0.left": (lambda a: _changed(a, 0, 0), "a child does not come after its parent"),
    "0.right": (lambda a: _changed(a, 0, 10**9), "a child does not come after its parent"),
    "0.feature": (lambda a: _changed(a, 0, 999), "a feature that is none"),
    "0.value": (lambda a: _changed(a, 5, np.nan), "not a number"),
    "0.threshold": (lambda a: a[:-1], "threshold has"),
    "0.roots": (lambda a: _changed(a, 0, -1), "a root is no node"),
    "0.smallest": (lambda a: a[:3], r"smallest is float64 \[3\]"),
    "0.largest": (lambda a: a.astype(np.float32), "largest is float32"),
    "1.value": (lambda a: None, "no 1.value"),
    "document": (lambda a: None, "no document"),
    "more": (lambda a: np.zeros(3), "nothing asks for its more"),
    "0.right ": (lambda a: np.array([{}], dtype=object), "pickle"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_arrays_are_refused(saved: Path, tmp_path: Path, name: str):
    change, reason = BROKEN[name]
    known = _array(saved, name) if name in np.load(saved).files else np.zeros(1)
    with pytest.raises(ValueError, match=f"is no predictor: .*{reason}|{reason}"):
        Predictor.load(rewritten(saved, tmp_path / "broken.npz", **{name: change(known)}))


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (["format"], "other", "another format"),
        (["version"], 1, "it is of version 1, and this is version 2"),
        (["sizes"], [], "it knows the sizes"),
        (["device", "multiprocessors"], 0, "multiprocessors is 0"),
        (["device", "name"], 3, "name is 3, not a text"),
        (["device"], None, "no predictor"),
        (["kernels"], [], "no kernel"),
        (["kernels", 0, "op"], "sort", "there is no op 'sort'"),
        (["kernels", 0, "constants", "tile"], -1.0, "none of a fit"),
        (["kernels", 0, "constants", "sharpness"], 50.0, "sharpness is 50"),
        (["kernels", 0, "constants", "flops"], float("nan"), "flops is nan"),
        (["kernels", 0, "low"], 1e9, "the sum goes from"),
        (["kernels", 0, "half_width"], -1, "an interval of -1"),
        (["kernels", 0, "features"], 10**6, "its trees know 1000000 features"),
        (["kernels", 1, "name"], "add float32", "one twice"),
    ],
)
def test_broken_documents_are_refused(saved: Path, tmp_path: Path, path: list, value: object, reason: str):
    document = json.loads(_array(saved, "document").tobytes())
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    text = np.frombuffer(json.dumps(document).encode(), np.uint8)
    with pytest.raises(ValueError, match=reason):
        Predictor.load(rewritten(saved, tmp_path / "broken.npz", document=text))


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x80\x04]."])
def test_foreign_files_are_refused(tmp_path: Path, content: bytes):
    (tmp_path / "foreign").write_bytes(content)
    with pytest.raises(ValueError, match="foreign is no predictor"):
        Predictor.load(tmp_path / "foreign")
    with pytest.raises(FileNotFoundError):
        Predictor.load(tmp_path / "absent")


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(0, 255))
@example(2280, 0)  # in the header of an array, which numpy reads as Python
def test_a_file_with_a_changed_byte_loads_the_same_or_is_refused(saved: Path, place: int, byte: int):
    content = bytearray(saved.read_bytes())
    content[place % len(content)] = byte
    changed = saved.with_name("changed")
    changed.write_bytes(content)
    try:
        loaded = Predictor.load(changed)
    except ValueError as error:
        assert "is no predictor" in str(error)  # noqa: PT017
        return
    asked, _ = rows("gemm", 5, seed=4)
    assert loaded.predict_all(asked) == Predictor.load(saved).predict_all(asked)
