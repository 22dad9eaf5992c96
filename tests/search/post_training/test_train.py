"""The training loop: continued to the bit, stopped where it should, and true to its rates."""

from __future__ import annotations

import itertools
import math
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from jetvit.patterns.errors import InputError, JetvitError
from jetvit.search.calibration.run_folder import RunFolder
from jetvit.search.post_training.train import Run, Schedule, Training

STEPS = 8


class Killed(Exception):
    """In the place of a signal."""


class Toy:
    """Two groups, one weight of which has a gradient in every third step only, and one that never has any."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        names = ("often", "seldom", "never", "new")
        self.weights = {name: nn.Parameter(torch.randn(3, generator=generator)) for name in names}

    def groups(self) -> dict[str, dict[str, nn.Parameter]]:
        first = {name: self.weights[name] for name in ("often", "seldom", "never")}
        return {"first": first, "second": {"new": self.weights["new"]}}

    def step(self, number: int) -> dict[str, float]:
        target = torch.randn(3, generator=torch.Generator().manual_seed(100 + number))
        losses = {"often": self.weights["often"] - target, "new": self.weights["new"] * target}
        if number % 3 == 0:
            losses["seldom"] = self.weights["seldom"] + target
        found = {}
        for name, value in losses.items():
            loss = value.square().sum()
            loss.backward()
            found[name] = float(loss.detach())
        return found

    def badness(self) -> float:
        return float(self.weights["often"].detach().sum())

    def values(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.weights.items()}


def training(toy: Toy, schedule: Schedule, run: Run | None = None) -> Training:
    return Training("toy", schedule, toy.groups(), {"often", "seldom", "never"}, run or Run())


@settings(max_examples=25)
@given(
    save_every=st.integers(1, STEPS + 1),
    kills=st.lists(st.integers(0, STEPS - 1), min_size=1, max_size=3),
    validate_every=st.integers(1, 5),
    patience=st.integers(1, 3),
    in_the_step=st.booleans(),
)
@example(save_every=4, kills=[4], validate_every=2, patience=3, in_the_step=True)
def test_continued_is_the_same_to_the_bit(
    save_every: int, kills: list[int], validate_every: int, patience: int, in_the_step: bool
):
    schedule = Schedule(STEPS, 0.1, 0.2, weight_decay=0.1, validate_every=validate_every, patience=patience)
    undisturbed = Toy()
    expected = training(undisturbed, schedule)(undisturbed.step, undisturbed.badness)
    with tempfile.TemporaryDirectory() as folder:
        for kill in [*kills, None]:
            toy = Toy()

            def step(number: int, toy: Toy = toy, kill: int | None = kill) -> dict[str, float]:
                if number == kill and not in_the_step:
                    raise Killed
                losses = toy.step(number)
                if number == kill:
                    raise Killed
                return losses

            run = Run(folder=RunFolder(folder, {}), save_every=save_every)
            try:
                found = training(toy, schedule, run)(step, toy.badness)
            except Killed:
                assert kill is not None
        assert found.names == expected.names
        assert torch.equal(found.losses.nan_to_num(-1), expected.losses.nan_to_num(-1))
        for name, value in undisturbed.values().items():
            assert torch.equal(toy.values()[name], value), name


def test_it_goes_on_where_it_was_saved(tmp_path: Path):
    done: list[int] = []
    for kill in (5, None):
        toy = Toy()

        def step(number: int, toy: Toy = toy, kill: int | None = kill) -> dict[str, float]:
            if number == kill:
                raise Killed
            done.append(number)
            return toy.step(number)

        train = training(toy, Schedule(STEPS, 0.1), Run(folder=RunFolder(tmp_path, {}), save_every=3))
        if kill is None:
            train(step)
        else:
            with pytest.raises(Killed):
                train(step)
    assert done == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7]
    ended = Toy()
    training(ended, Schedule(STEPS, 0.1), Run(folder=RunFolder(tmp_path, {})))(lambda number: pytest.fail("a step"))
    assert all(torch.equal(ended.values()[name], value) for name, value in toy.values().items())


@given(st.lists(st.integers(0, 5).map(float), min_size=STEPS, max_size=STEPS), st.integers(1, 3))
@settings(max_examples=40)
def test_it_stops_early_and_returns_to_the_best_weights(badness: list[float], patience: int):
    """By a plain walk over the validations, one after each step."""
    best, stop = 0, STEPS - 1
    for place, value in enumerate(badness):
        if value < badness[best]:
            best = place
        if place - best >= patience:
            stop = place
            break
    toy = Toy()
    weights: list[dict[str, Tensor]] = []

    def validate() -> float:
        weights.append(toy.values())
        return badness[len(weights) - 1]

    history = training(toy, Schedule(STEPS, 0.1, validate_every=1, patience=patience))(toy.step, validate)
    assert len(history.losses) == len(weights) == stop + 1
    assert all(torch.equal(toy.values()[name], value) for name, value in weights[best].items())


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_its_step(wrong: float):
    toy = Toy()

    def step(number: int) -> dict[str, float]:
        return toy.step(number) | ({"often": wrong} if number == 3 else {})

    with pytest.raises(JetvitError, match=f"the loss of often is {wrong}") as error:
        training(toy, Schedule(STEPS, 0.1))(step)
    assert error.value.why == "in step 4 of the stage toy"


def test_a_weight_that_is_not_finite_in_the_end_is_noticed(tmp_path: Path):
    toy = Toy()
    run = Run(folder=RunFolder(tmp_path, {}))
    with pytest.raises(JetvitError, match="the weight often of first is not finite") as error:
        training(toy, Schedule(1, math.inf), run)(toy.step)
    assert error.value.why == "after the last step of the stage toy"
    assert not (tmp_path / "toy.safetensors").exists()


def test_float16_is_refused():
    with pytest.raises(InputError, match="float16 weights cannot be trained"):
        Training("stage", Schedule(1, 0.1), {"group": {"weight": nn.Parameter(torch.zeros(1).half())}}, (), Run())


@given(steps=st.integers(1, 500), warm_up=st.floats(0, 0.9))
def test_the_rate_rises_and_falls(steps: int, warm_up: float):
    rates = [Schedule(steps, 1.0, warm_up=warm_up).rate(step) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert top <= math.ceil(warm_up * steps)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"warm_up": 1.0}, {"warm_up": -0.1}])
def test_no_schedule(wrong: dict[str, float]):
    with pytest.raises(ValueError, match="no schedule"):
        Schedule(**{"steps": 1, "learning_rate": 0.1, **wrong})  # type: ignore[arg-type]


def test_new_weights_have_a_rate_of_their_own():
    # The first step of AdamW goes by its rate, whatever the gradient.
    toy = Toy()
    before = toy.values()
    training(toy, Schedule(1, 1e-2, 3e-2, warm_up=0.0, clip=math.inf))(toy.step)
    moved = {name: (value - before[name]).abs() for name, value in toy.values().items()}
    torch.testing.assert_close(moved["often"], torch.full((3,), 1e-2))
    torch.testing.assert_close(moved["new"], torch.full((3,), 3e-2))
    assert moved["never"].max() == 0


@given(st.floats(0.1, 10), st.floats(0.01, 100), st.floats(0.01, 100))
@settings(max_examples=30)
def test_gradients_are_clipped_by_group(clip: float, one: float, other: float):
    assume(min(abs(clip - each) for each in (one, other)) > 1e-3)
    weights = {name: nn.Parameter(torch.zeros(2)) for name in "ab"}
    groups = {name: {"weight": value} for name, value in weights.items()}

    def step(number: int) -> dict[str, float]:
        for name, norm in zip("ab", (one, other), strict=True):
            (weights[name] * torch.tensor([0.6, 0.8]) * norm).sum().backward()
        return {"loss": 0.0}

    Training("stage", Schedule(1, 0.0, 0.0, clip=clip), groups, (), Run())(step)
    for name, norm in zip("ab", (one, other), strict=True):
        assert weights[name].grad is not None
        assert float(weights[name].grad.norm()) == pytest.approx(min(norm, clip), rel=1e-4)


def test_weights_that_are_not_in_a_step_keep_still():
    toy, seen = Toy(), []

    def step(number: int) -> dict[str, float]:
        seen.append(toy.values())
        return toy.step(number)

    history = training(toy, Schedule(STEPS, 0.1, weight_decay=0.5))(step)
    seen.append(toy.values())
    for number, (before, after) in enumerate(itertools.pairwise(seen)):
        assert torch.equal(before["never"], after["never"])
        assert torch.equal(before["seldom"], after["seldom"]) == (number % 3 != 0), number
        assert not torch.equal(before["often"], after["often"])
    assert [math.isnan(loss) for loss in history.of("seldom")] == [number % 3 != 0 for number in range(STEPS)]
    assert all(map(math.isfinite, history.of("often")))


def test_progress_is_told():
    told: list[tuple[str, int, int]] = []
    toy = Toy()
    run = Run(progress=lambda *what: told.append(what))
    Training("one_stage", Schedule(3, 0.1), toy.groups(), (), run)(toy.step)
    assert told == [("one stage", done, 3) for done in (1, 2, 3)]


def test_metrics_are_complete_where_the_stage_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Killed just after the stage was kept: nobody would write its metrics later.
    folder, toy = RunFolder(tmp_path, {}), Toy()
    save = folder.save

    def save_and_die(stage: str, tensors: dict[str, Tensor], record: dict[str, object]) -> None:
        save(stage, tensors, record)
        if record["done"]:
            raise Killed

    monkeypatch.setattr(folder, "save", save_and_die)
    with pytest.raises(Killed):
        training(toy, Schedule(STEPS, 0.1), Run(folder=folder, save_every=3))(toy.step)
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + STEPS
