"""Whole models are timed side by side, and a ratio is only as sure as its rounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetvit.cost_model import Choice
from jetvit.cost_model.measuring import rounds
from jetvit.passes.frontends.capture import export_model
from jetvit.search.calibration import model_latency
from jetvit.search.calibration.model_latency import MeasuredHere, WholeLatencies, attention_shape
from jetvit.search.calibration.trial import Trial
from tests.zoo import CASES

WINDOW = Choice("window", window=(2, 2))


@pytest.fixture(scope="module")
def trial() -> Trial:
    case = CASES["extra_both"]
    args, kwargs = case.inputs()
    return Trial(export_model(case.build(), args, kwargs), [(args, kwargs)])


def test_all_are_timed_in_the_same_rounds(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_SAMPLE_S", 1e-4)
    names = [site.name for site in trial.sites]
    found = MeasuredHere(trial, "here").whole([{names[0]: WINDOW}, dict.fromkeys(names, WINDOW)])
    assert [len(samples) for samples in found.samples_ms] == [20] * 3
    assert min(found.median_ms) > 0


def test_a_slow_model_gets_five_rounds(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_SAMPLE_S", 1e-4)
    monkeypatch.setattr(model_latency, "_TIME_LIMIT_S", 0.0)
    assert [len(samples) for samples in MeasuredHere(trial, "here").whole([]).samples_ms] == [5]


def test_every_choice_has_a_latency_at_every_site(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    covering = Choice("window", window=(64, 64))
    alternatives = trial.alternatives([WINDOW, covering])
    assert list(alternatives.values()) == [[WINDOW]] * len(trial.sites)
    answers = MeasuredHere(trial, "here").alone(alternatives)
    assert [list(some) for some in answers.values()] == [[Choice("full"), WINDOW]] * len(trial.sites)
    assert all(0 < each.low <= each.ms <= each.high for some in answers.values() for each in some.values())
    assert all(each.source == "measured" for some in answers.values() for each in some.values())


def test_the_shape_of_a_site(trial: Trial) -> None:
    case, shape = CASES["extra_both"], attention_shape(trial.sites[0])
    assert (shape.batch, shape.num_heads, shape.head_dim) == (2, case.num_heads, case.head_dim)
    assert (shape.grid, shape.extra_before, shape.extra_after) == (case.grid(case.size), 2, 3)
    assert (shape.dtype, shape.device) == (torch.float32, "cpu")


@settings(max_examples=30)
@given(st.lists(st.floats(1, 100), min_size=5, max_size=20), st.floats(0.5, 4))
def test_a_slow_spell_does_not_move_the_ratio(samples_ms: list[float], factor: float) -> None:
    """Both models meet it in one round, so the ratio within the round stays."""
    found = WholeLatencies((tuple(factor * ms for ms in samples_ms), tuple(samples_ms)))
    assert found.speedup(1) == pytest.approx((factor,) * 3)
    assert found.speedup(0) == (1.0, 1.0, 1.0)


def test_noise_widens_the_interval() -> None:
    noisy = WholeLatencies(((10.0, 12.0, 9.0, 11.0, 10.0, 8.0), (9.9, 10.0, 10.1, 9.8, 10.2, 10.0)))
    ratio, low, high = noisy.speedup(1)
    assert low < 1 < high
    assert low <= ratio <= high


def test_an_estimate_is_one_sample() -> None:
    assert WholeLatencies(((10.0,), (8.0,))).speedup(1) == (1.25, 1.25, 1.25)
