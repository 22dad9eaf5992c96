from __future__ import annotations

import pytest
from hypothesis import given

from jetvit.cost_model import Choice
from jetvit.patterns.errors import PlanError
from tests.cost_model.strategies import choices


@pytest.mark.parametrize(
    ("choice", "label"),
    [
        (Choice("full"), "full"),
        (Choice("window", window=(16, 8)), "window 16x8"),
        (Choice("linear"), "linear relu"),
        (Choice("linear", conv_size=3), "linear relu conv3"),
        (Choice("linear", conv_size=5, eps=1e-3), "linear relu conv5 eps0.001"),
        (Choice("linear", feature_map="relu_centred"), "linear relu_centred"),
        (Choice("linear", feature_map="hedgehog", conv_size=3), "linear hedgehog conv3"),
    ],
)
def test_label_is_stable(choice: Choice, label: str):
    assert choice.label == label == str(choice)


@given(choices, choices)
def test_labels_tell_choices_apart(one: Choice, other: Choice):
    assert (one.label == other.label) == (one == other)


@given(choices)
def test_json_there_and_back(choice: Choice):
    record = choice.to_json()
    assert Choice.from_json(record) == choice
    assert None not in record.values()


def test_defaults_of_linear_are_filled_in():
    assert Choice("linear") == Choice("linear", conv_size=0, eps=1e-6, feature_map="relu")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"kind": "sparse"}, "'sparse', which is none of full, window, linear"),
        ({"kind": "full", "window": (16, 16)}, "full attention takes no window"),
        ({"kind": "full", "eps": 0.1}, "full attention takes no eps"),
        ({"kind": "window"}, "window=(height, width)"),
        ({"kind": "window", "window": (16,)}, "window=(height, width)"),
        ({"kind": "window", "window": (0, 16)}, "both at least 1"),
        ({"kind": "window", "window": (16, 16), "conv_size": 3}, "window attention takes no conv_size"),
        ({"kind": "linear", "window": (16, 16)}, "linear attention takes no window"),
        ({"kind": "linear", "conv_size": 4}, "conv_size is 4, which is none of 0, 1, 3, 5, 7"),
        ({"kind": "linear", "conv_size": -1}, "conv_size is -1"),
        ({"kind": "linear", "feature_map": "exp"}, "'exp', which is none of relu, relu_centred, hedgehog"),
        ({"kind": "linear", "eps": 0.0}, "eps is 0.0"),
        ({"kind": "linear", "eps": float("nan")}, "eps is nan"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(fields: dict, why: str):
    with pytest.raises(PlanError) as error:
        Choice(**fields)
    assert why in error.value.why
    assert error.value.do


def test_a_window_covers_grids_that_it_holds_whole():
    window = Choice("window", window=(8, 16))
    assert window.covers((8, 16))
    assert window.covers((1, 2))
    assert not window.covers((9, 16))
    assert not window.covers((8, 17))
    assert not any(Choice(kind).covers((1, 1)) for kind in ("full", "linear"))
