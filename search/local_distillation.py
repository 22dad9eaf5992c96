"""Local distillation: every choice at every site learns, by itself, what full attention yields there.

One pass of the original model gives every site its true input and its true output, so that all choices train at once
and no error piles up from block to block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jetvit.cost_model import Choice
from jetvit.patterns.errors import InputError, JetvitError
from jetvit.search.runner import Batch
from jetvit.search.supernet import FULL, Supernet

Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class LocalDistillation:
    """How choices are trained by themselves.

    * steps: optimiser steps, one batch each.
    * learning_rate: of what is inherited from the model; new_learning_rate: of weights that a choice brings.
    * warm_up: the share of the steps over which the rates rise; they fall along a cosine to zero after it.
    * clip: the largest norm of the gradient of one choice at one site.
    """

    steps: int = 160
    learning_rate: float = 5e-4
    new_learning_rate: float = 1e-3
    warm_up: float = 0.1
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.warm_up < 1:
            raise ValueError(f"{self.steps} steps with a warm-up of {self.warm_up} are no schedule")

    def rate(self, step: int) -> float:
        """The share of the learning rates that a step takes, from 0 to 1."""
        rising = self.warm_up * self.steps
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, self.steps - rising)))

    def __call__(
        self,
        net: Supernet,
        batches: Iterable[Batch],
        choices: Mapping[str, Sequence[Choice]] | None = None,
        progress: Progress = lambda step, loss: None,
    ) -> list[dict[tuple[str, Choice], float]]:
        """Train in place, and answer the loss of every choice at every site before each step.

        The loss is the squared error of a site's output, over the energy of what full attention yields.

        Args:
            net: the supernet.
            batches: at least `steps` batches of inputs.
            choices: what to train at each site; all by default.
            progress: called with the steps done and the mean loss of the last.
        Raises:
            JetvitError: a loss or, in the end, a weight is not finite; the batches end early.
            InputError: the weights are of 16 bits without the range of 32, which no optimiser steps on.
            ValueError: a site or a choice is not there.
        """
        trained = [
            (name, choice)
            for name, site in net.choice_sites.items()
            for choice in (site.choices if choices is None else dict.fromkeys(choices.get(name, ())))
            if choice != FULL
        ]
        for name, some in (choices or {}).items():
            for choice in some:
                net.check(name, choice)
        groups = {key: net.choice_sites[key[0]].parameters_of(key[1]) for key in trained}
        if any(value.dtype == torch.float16 for named in groups.values() for value in named.values()):
            raise InputError("float16 weights cannot be trained", do="load the model in float32 or bfloat16")
        optimizer = self._optimizer(groups, net)
        history: list[dict[tuple[str, Choice], float]] = []
        for step, batch in zip(range(self.steps), batches, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = group["full_rate"] * self.rate(step)
            optimizer.zero_grad(set_to_none=True)
            losses = {}
            for name, values, target in _inputs_and_targets(net, batch):
                for choice in [choice for site, choice in trained if site == name]:
                    loss = _loss(net.choice_sites[name].run(choice, values), target)
                    losses[name, choice] = _finite(loss, name, choice, step)
                    loss.backward()
                    nn.utils.clip_grad_norm_(groups[name, choice].values(), self.clip)
            optimizer.step()
            history.append(losses)
            progress(step + 1, sum(losses.values()) / max(1, len(losses)))
        if len(history) < self.steps:
            raise JetvitError(
                f"the images ended after {len(history)} of {self.steps} steps", do="give an endless stream of batches"
            )
        for (name, choice), named in groups.items():
            if not all(value.isfinite().all() for value in named.values()):
                raise JetvitError(
                    f"a weight of {choice.label} at {name} is not finite",
                    why="after the last step of the local distillation",
                    do="use a smaller learning rate",
                )
        return history

    def _optimizer(
        self, groups: Mapping[tuple[str, Choice], Mapping[str, nn.Parameter]], net: Supernet
    ) -> torch.optim.AdamW:
        inherited: list[nn.Parameter] = []
        new: list[nn.Parameter] = []
        for named in groups.values():
            for fqn, parameter in named.items():
                (inherited if fqn in net.program.state_dict else new).append(parameter)
        rates = ((inherited, self.learning_rate), (new, self.new_learning_rate))
        return torch.optim.AdamW(
            [{"params": some, "lr": rate, "full_rate": rate} for some, rate in rates if some], weight_decay=0.0
        )


def _inputs_and_targets(net: Supernet, batch: Batch) -> Iterator[tuple[str, tuple[object, ...], Tensor]]:
    """By site: what comes in where all attention is full, and what full attention makes of it."""
    args, kwargs = batch
    with torch.no_grad(), net.path({}), net.watching() as seen:
        net(*args, **kwargs)
    for name, calls in seen.items():
        for values, target in calls:
            yield name, values, target


def _loss(output: Tensor, target: Tensor) -> Tensor:
    return (output.float() - target.float()).square().sum() / target.float().square().sum().clamp_min(1e-20)


def _finite(loss: Tensor, name: str, choice: Choice, step: int) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise JetvitError(
            f"the loss of {choice.label} at {name} is {value}",
            why=f"in step {step + 1} of the local distillation",
            do="check that the images are finite, or use a smaller learning rate",
        )
    return value
