"""Local distillation: choices learn what full attention yields at their own site, and nothing else changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.whole_plans.plain_vit import PlainViT
from jetvit.cost_model import Choice
from jetvit.passes.frontends.capture import export_model
from jetvit.patterns.errors import InputError, JetvitError
from jetvit.search.calibration.run_folder import RunFolder
from jetvit.search.data.processes import Processes
from jetvit.search.data.splits import Sample
from jetvit.search.data.stream import Stream
from jetvit.search.post_training.local_distillation import local_distillation, loss_name
from jetvit.search.post_training.supernet import FULL, Supernet
from jetvit.search.post_training.train import History, Run, Schedule
from tests.search.tiny import CONV, LINEAR, SIZE, WINDOW, Noise, plain, small


def net_of(depth: int = 2, batch: int = 2) -> Supernet:
    return Supernet(export_model(small(depth), (torch.randn(batch, 3, *SIZE),), {}), (LINEAR, CONV, WINDOW))


def distilled(
    net: Supernet,
    steps: int,
    choices: Mapping[str, Sequence[Choice]] | None = None,
    run: Run | None = None,
    rate: float = 3e-3,
    split: Noise | None = None,
) -> History:
    stream = Stream(split or Noise(8, 1), 2, "a", Processes())
    return local_distillation(net, stream, plain, Schedule(steps, rate, rate), run or Run(), choices)


def test_every_choice_at_every_site_learns():
    net = net_of()
    told: list[tuple[str, int, int]] = []
    history = distilled(net, 40, run=Run(progress=lambda *what: told.append(what)))
    assert told == [("local distillation", step, 40) for step in range(1, 41)]
    names = {loss_name(name, choice) for name in net.choice_sites for choice in (LINEAR, CONV, WINDOW)}
    assert set(history.names) == names
    for name in names:
        losses = history.of(name)
        first, last = sum(losses[:4]), sum(losses[-4:])  # an epoch each
        assert last < 0.9 * first, f"{name}: {first} → {last}"
    for name in net.choice_sites:  # a convolution that begins with nothing cannot do worse in the end
        assert history.of(loss_name(name, CONV))[0] == pytest.approx(history.of(loss_name(name, LINEAR))[0])


def test_the_loss_is_the_mean_of_the_images_shares():
    """One image is a hundred times as large as the other: each counts as much."""
    net = net_of(1)

    class Uneven(Noise):
        def __getitem__(self, index: int, /) -> Sample:
            return Sample(super().__getitem__(index).image * (100 if index else 1))

    found = distilled(net, 1, {"blocks.0.attn": [WINDOW]}, split=Uneven(2, 1), rate=0.0)
    images = torch.stack([Uneven(2, 1)[number].image for number in (0, 1)])
    with torch.no_grad(), net.watching() as seen:
        net(images)
        ((values, target),) = seen["blocks.0.attn"]
        output = net.choice_sites["blocks.0.attn"].run(WINDOW, values)
    shares = [float((output[n] - target[n]).square().sum() / target[n].square().sum()) for n in (0, 1)]
    assert found.of(loss_name("blocks.0.attn", WINDOW)) == pytest.approx([sum(shares) / 2], rel=1e-5)


def test_the_rest_stays_as_it_was():
    net = net_of()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with net.path({"blocks.0.attn": LINEAR}):  # whatever the active path
        history = distilled(net, 3, {"blocks.1.attn": [CONV]})
    assert history.names == (loss_name("blocks.1.attn", CONV),)
    own = {id(value) for value in net.choice_sites["blocks.1.attn"].parameters_of(CONV).values()}
    for name, value in net.named_parameters():
        assert torch.equal(value, before[name]) != (id(value) in own), name
    assert all(site.watch is None and site.active == FULL for site in net.choice_sites.values())


def test_sites_learn_by_themselves():
    # What one site learns is the same whether or not others are trained beside it.
    name = loss_name("blocks.1.attn", WINDOW)
    assert distilled(net_of(), 5).of(name) == distilled(net_of(), 5, {"blocks.1.attn": [WINDOW]}).of(name)


def test_it_is_deterministic_and_goes_on_after_a_kill(tmp_path: Path):
    class Killed(Exception):
        pass

    def die(what: str, done: int, total: int) -> None:
        if done == 4:
            raise Killed

    one, other = net_of(), net_of()
    expected = distilled(one, 6)
    with pytest.raises(Killed):
        distilled(net_of(), 6, run=Run(folder=RunFolder(tmp_path, {}), save_every=3, progress=die))
    found = distilled(other, 6, run=Run(folder=RunFolder(tmp_path, {}), save_every=3))
    assert found.names == expected.names
    assert torch.equal(found.losses, expected.losses)
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))


def test_a_loss_that_is_not_finite_stops_with_its_step():
    class Broken(Noise):
        def __getitem__(self, index: int, /) -> Sample:
            image = super().__getitem__(index).image
            return Sample(image * math.nan if index in bad else image)

    stream = Stream(Noise(8, 1), 2, "a", Processes())
    images, _ = stream(2)
    bad = [number for number in range(8) if any(torch.equal(Noise(8, 1)[number].image, each) for each in images)]
    assert len(bad) == 2
    with pytest.raises(JetvitError, match=r"the loss of linear relu at blocks\.0\.attn is nan") as error:
        distilled(net_of(), 4, split=Broken(8, 1))
    assert error.value.why == "in step 3 of the stage local_distillation"


def test_half_precision_is_refused():
    torch.manual_seed(0)
    model = PlainViT(1, 32, 2).eval().half()
    net = Supernet(export_model(model, (torch.randn(2, 3, *SIZE).half(),), {}), (LINEAR,))
    with pytest.raises(InputError, match="float16 weights cannot be trained"):
        distilled(net, 1)


def test_a_weight_that_is_not_finite_in_the_end_is_noticed():
    with pytest.raises(JetvitError, match=r"the weight blocks\.0\..* of linear relu at blocks\.0\.attn is not finite"):
        distilled(net_of(), 1, rate=math.inf)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"blocks.0.atn": [LINEAR]}, "there is no site"),
        ({"blocks.0.attn": [Choice("linear", conv_size=5)]}, "cannot be"),
    ],
)
def test_sites_and_choices_that_are_not_there(wrong: Mapping[str, Sequence[Choice]], message: str):
    with pytest.raises(ValueError, match=message):
        distilled(net_of(), 1, wrong)


def test_a_choice_that_is_named_twice_is_trained_once():
    twice, once = (distilled(net_of(), 3, {"blocks.0.attn": [WINDOW] * count}) for count in (2, 1))
    assert twice.names == once.names
    assert torch.equal(twice.losses, once.losses)
