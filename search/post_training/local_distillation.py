"""Local distillation: train every choice at every site alone to match the output of full attention there.

One pass of the original model gives every site its true input and its true output, so that all choices train at once
and no error piles up from block to block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from jetvit.cost_model import FULL, Choice
from jetvit.search.data.stream import Inputs, Stream
from jetvit.search.post_training.supernet import Supernet
from jetvit.search.post_training.train import History, Run, Schedule, Training


def local_distillation(
    net: Supernet,
    stream: Stream,
    inputs: Inputs,
    schedule: Schedule,
    run: Run,
    choices: Mapping[str, Sequence[Choice]] | None = None,
) -> History:
    """Train choices in place.

    The loss of a choice at a site is the squared error of the site's output over the energy of what full attention
    yields, the mean over images. Its name in the history is `loss_name(site, choice)`.

    Args:
        net: the supernet.
        stream: the images.
        inputs: from images to what the model is called with.
        schedule: how; each choice's gradient is clipped by itself.
        run: what all stages share.
        choices: what to train at each site; all by default.
    Raises:
        JetvitError: a loss or, in the end, a weight is not finite.
        InputError: the weights are float16.
        ValueError: a site or a choice is not there.
    """
    for name, some in (choices or {}).items():
        for choice in some:
            net.check(name, choice)
    trained = {
        name: [
            choice
            for choice in (site.choices if choices is None else dict.fromkeys(choices.get(name, ())))
            if choice != FULL
        ]
        for name, site in net.choice_sites.items()
    }
    groups = {
        loss_name(name, choice): net.choice_sites[name].parameters_of(choice)
        for name, some in trained.items()
        for choice in some
    }

    def step(number: int) -> dict[str, float]:
        losses = {}
        for name, values, target in _inputs_and_targets(net, stream(number)[0], inputs, run):
            for choice in trained[name]:
                with run.autocast():
                    output = net.choice_sites[name].run(choice, values)
                loss = _loss(output, target)
                loss.backward()
                losses[loss_name(name, choice)] = float(loss.detach())
        return losses

    return Training("local_distillation", schedule, groups, net.program.state_dict, run)(step)


def loss_name(site: str, choice: Choice) -> str:
    """Name the loss of a choice at a site."""
    return f"{choice.label} at {site}"


def _inputs_and_targets(
    net: Supernet, images: Tensor, inputs: Inputs, run: Run
) -> Iterator[tuple[str, tuple[object, ...], Tensor]]:
    """By site: what comes in where all attention is full, and what full attention makes of it."""
    args, kwargs = inputs(images)
    with torch.no_grad(), run.autocast(), net.path({}), net.watching() as seen:
        net(*args, **kwargs)
    for name, calls in seen.items():
        for values, target in calls:
            yield name, values, target


def _loss(output: Tensor, target: Tensor) -> Tensor:
    error, energy = ((value.float().square().flatten(1).sum(1)) for value in (output - target, target))
    return (error / energy.clamp_min(1e-20)).mean()
