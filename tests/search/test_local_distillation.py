"""Local distillation: choices learn what full attention yields at their own site, and nothing else changes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jetvit.cost_model import Choice
from jetvit.demo import SmallViT
from jetvit.passes.capture import export_model
from jetvit.patterns.errors import InputError, JetvitError
from jetvit.search.local_distillation import LocalDistillation
from jetvit.search.runner import Batch
from jetvit.search.supernet import FULL, Supernet

LINEAR, CONV, WINDOW = Choice("linear"), Choice("linear", conv_size=3), Choice("window", window=(2, 2))


def net_of(depth: int = 2, seed: int = 0) -> Supernet:
    torch.manual_seed(seed)
    model = SmallViT(depth, 32, 2).eval()
    return Supernet(export_model(model, (torch.randn(2, 3, 64, 64),), {}), (LINEAR, CONV, WINDOW))


def batches(seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [((torch.randn(2, 3, 64, 64, generator=generator),), {}) for _ in range(4)]


def endless() -> itertools.cycle[Batch]:
    return itertools.cycle(batches())


def test_every_choice_at_every_site_learns():
    net = net_of()
    seen: list[int] = []
    recipe = LocalDistillation(steps=40, learning_rate=3e-3, new_learning_rate=3e-3)
    history = recipe(net, endless(), progress=lambda step, loss: seen.append(step))
    assert seen == list(range(1, 41))
    assert set(history[0]) == {(name, choice) for name in net.choice_sites for choice in (LINEAR, CONV, WINDOW)}
    for key in history[0]:
        first, last = (sum(some[key] for some in part) for part in (history[:4], history[-4:]))
        assert last < 0.9 * first, f"{key}: {first} → {last}"
    for name in net.choice_sites:  # a convolution that begins with nothing cannot do worse in the end
        assert history[0][name, CONV] == pytest.approx(history[0][name, LINEAR])


def test_the_rest_stays_as_it_was():
    net = net_of()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    only = {"blocks.1.attn": [CONV]}
    history = LocalDistillation(steps=3)(net, endless(), only)
    assert [set(losses) for losses in history] == [{("blocks.1.attn", CONV)}] * 3
    own = {id(value) for value in net.choice_sites["blocks.1.attn"].parameters_of(CONV).values()}
    for name, value in net.named_parameters():
        assert torch.equal(value, before[name]) != (id(value) in own), name
    assert all(site.watch is None and site.active == FULL for site in net.choice_sites.values())


def test_sites_learn_by_themselves():
    # What one site learns is the same whether or not others are trained beside it.
    together, alone = net_of(), net_of()
    recipe = LocalDistillation(steps=5)
    both = recipe(together, endless())
    one = recipe(alone, endless(), {"blocks.0.attn": [WINDOW]})
    assert [losses["blocks.0.attn", WINDOW] for losses in both] == [losses["blocks.0.attn", WINDOW] for losses in one]


def test_it_is_deterministic():
    first, second = (LocalDistillation(steps=4)(net_of(), endless()) for _ in range(2))
    assert first == second


def test_a_loss_that_is_not_finite_stops_with_its_step():
    bad = batches()
    bad[2][0][0][0, 0, 0, 0] = math.nan
    with pytest.raises(JetvitError, match=r"the loss of linear relu at blocks.0.attn is nan") as error:
        LocalDistillation(steps=9)(net_of(), bad)
    assert error.value.why == "in step 3 of the local distillation"


def test_too_few_images():
    with pytest.raises(JetvitError, match="the images ended after 4 of 9 steps"):
        LocalDistillation(steps=9)(net_of(), batches())


@given(steps=st.integers(1, 500), warm_up=st.floats(0, 0.9))
def test_the_rate_rises_and_falls(steps: int, warm_up: float):
    recipe = LocalDistillation(steps=steps, warm_up=warm_up)
    rates = [recipe.rate(step) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"warm_up": 1.0}])
def test_no_schedule(wrong: dict[str, float]):
    with pytest.raises(ValueError, match="no schedule"):
        LocalDistillation(**wrong)  # type: ignore[arg-type]


def test_half_precision_is_refused():
    torch.manual_seed(0)
    model = SmallViT(1, 32, 2).eval().half()
    net = Supernet(export_model(model, (torch.randn(2, 3, 64, 64).half(),), {}), (LINEAR,))
    with pytest.raises(InputError, match="float16 weights cannot be trained"):
        LocalDistillation(steps=1)(net, endless())


def test_a_weight_that_is_not_finite_in_the_end_is_noticed():
    with pytest.raises(JetvitError, match=r"(a weight|the loss) of .* at blocks"):
        LocalDistillation(steps=1, learning_rate=math.inf)(net_of(), endless())


def test_sites_and_choices_that_are_not_there():
    for wrong in ({"blocks.0.atn": [LINEAR]}, {"blocks.0.attn": [Choice("linear", conv_size=5)]}):
        with pytest.raises(ValueError, match=r"there is no site|cannot be"):
            LocalDistillation(steps=1)(net_of(), endless(), wrong)


def test_a_choice_that_is_named_twice_is_trained_once():
    twice, once = (
        LocalDistillation(steps=3)(net_of(), endless(), {"blocks.0.attn": [WINDOW] * count}) for count in (2, 1)
    )
    assert twice == once
