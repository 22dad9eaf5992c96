"""The training loop of every stage: rates, averaging over processes, progress on the disk, and when to stop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from jetvit.patterns.errors import InputError, JetvitError
from jetvit.patterns.wording import counted
from jetvit.search.calibration.run_folder import RunFolder
from jetvit.search.data.processes import Processes
from jetvit.search.post_training.shards import all_finite, is_shard, like, whole

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
Groups = Mapping[str, Mapping[str, nn.Parameter]]
"""Parameters by their names in the model, in groups whose gradients are clipped together."""


@dataclass(frozen=True)
class Run:
    """The settings that all stages of a search share.

    * seed: all that is drawn at random follows from it and from the number of the step.
    * folder: where progress is kept, if anywhere. save_every: steps between two saves.
    * device: that of the model. precision: "bf16" runs the models under autocast; the weights keep their dtype.
    * progress: called with a description, the steps done, and their number.
    """

    seed: int = 0
    folder: RunFolder | None = None
    save_every: int = 25
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    precision: str = "fp32"
    processes: Processes = field(default_factory=Processes)
    progress: Progress = lambda what, done, total: None

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run models as `precision` says."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            yield


@dataclass(frozen=True)
class Schedule:
    """The schedule of a training.

    * steps: of the optimiser, AdamW.
    * learning_rate: of what is inherited from the model; new_learning_rate: of weights that it does not have.
    * warm_up: the share of the steps over which the rates rise; they fall along a cosine to zero after it.
    * clip: the largest norm of the gradient of a group of weights.
    * validate_every: steps between two validations, of stages that train a whole model; None for none. patience: how
      many of them may bring nothing before the stage stops. Either way it ends with its best weights.
    """

    steps: int
    learning_rate: float
    new_learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warm_up: float = 0.1
    clip: float = 1.0
    validate_every: int | None = None
    patience: int = 3

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.warm_up < 1:
            raise ValueError(f"no schedule has {counted(self.steps, 'step')} with a warm-up of {self.warm_up}")

    def rate(self, step: int) -> float:
        """The share of the learning rates that a step takes, from 0 to 1."""
        rising = self.warm_up * self.steps
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, self.steps - rising)))


@dataclass(frozen=True)
class History:
    """The losses of a stage: [steps, names], NaN where a step had no loss of that name."""

    names: tuple[str, ...]
    losses: Tensor

    def of(self, name: str) -> list[float]:
        """The losses of one name, step by step."""
        return self.losses[:, self.names.index(name)].tolist()


def refuse_half(dtypes: Iterable[torch.dtype]) -> None:
    """Raise InputError for weights of 16 bits: most steps of an optimiser are smaller than what they can tell apart."""
    for dtype in dtypes:
        if dtype in (torch.float16, torch.bfloat16):
            raise InputError(
                f"{str(dtype).removeprefix('torch.')} weights cannot be trained",
                why="most steps of an optimiser would round to nothing",
                do='load the model in float32; precision "bf16" (--precision bf16) then runs it in 16 bits',
            )


class Training:
    """One stage of training.

    Args:
        stage: its name.
        schedule: how.
        groups: the parameters.
        inherited: the names of parameters that the model has.
        run: what all stages share.
        about: what is trained, where that is found by the search itself: progress on anything else is not continued.
    Raises:
        InputError: a parameter is of 16 bits.
    """

    def __init__(
        self, stage: str, schedule: Schedule, groups: Groups, inherited: Container[str], run: Run, about: str = ""
    ):
        self.stage, self.schedule, self.run, self.about = stage, schedule, run, about
        self.groups = groups
        refuse_half(value.dtype for named in groups.values() for value in named.values())
        self.parameters = {f"{group}/{fqn}": value for group, named in groups.items() for fqn, value in named.items()}
        rates: tuple[list[Tensor], list[Tensor]] = [], []
        for named in groups.values():
            for fqn, value in named.items():
                rates[fqn not in inherited].append(value)
        full_rates = (schedule.learning_rate, schedule.new_learning_rate)
        self.optimizer = torch.optim.AdamW(
            [{"params": some, "lr": rate, "full_rate": rate} for some, rate in zip(rates, full_rates, strict=True)],
            weight_decay=schedule.weight_decay,
        )
        self.rows: list[dict[str, float]] = []
        self.seconds: list[float] = []
        self.validations: list[float] = []
        self.best: dict[str, Tensor] = {}

    def __call__(
        self, step: Callable[[int], Mapping[str, float]], validate: Callable[[], float] | None = None
    ) -> History:
        """Train to the end, from where the run's folder says that it was.

        Args:
            step: called with the number of each step; runs backward on its losses, and answers them by name.
            validate: how bad the weights are; called now and then.
        Raises:
            JetvitError: a loss or, in the end, a weight is not finite.
        """
        if not self._resume():
            begin = time.perf_counter() - (self.seconds[-1] if self.seconds else 0.0)
            while len(self.rows) < self.schedule.steps and not self._has_stalled():
                self._step(step)
                self.seconds.append(time.perf_counter() - begin)
                done = len(self.rows)
                every = self.schedule.validate_every
                if validate is not None and every is not None and (done % every == 0 or done == self.schedule.steps):
                    self._validate(validate())
                if done % self.run.save_every == 0:
                    self._save(done=False)
                self.run.progress(self.stage.replace("_", " "), done, self.schedule.steps)
            with torch.no_grad():
                for name, value in self.best.items():
                    self.parameters[name].copy_(value)
            self._check_weights()
            self._save(done=True)
        return self.history()

    def history(self) -> History:
        """The losses so far."""
        names = tuple(dict.fromkeys(name for row in self.rows for name in row))
        rows = [[row.get(name, math.nan) for name in names] for row in self.rows]
        return History(names, torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(names)))

    def _step(self, step: Callable[[int], Mapping[str, float]]) -> None:
        number = len(self.rows)
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_rate"] * self.schedule.rate(number)
        self.optimizer.zero_grad(set_to_none=True)
        losses = dict(step(number))
        means = torch.tensor(list(losses.values()), dtype=torch.float64)
        self.run.processes.average([means])
        for name, value in zip(losses, means.tolist(), strict=True):
            if not math.isfinite(value):
                raise JetvitError(
                    f"the loss of {name} is {value}",
                    why=f"in step {number + 1} of the stage {self.stage}",
                    do="check that the images are finite, or use a smaller learning rate",
                )
            losses[name] = value
        gradients = (value.grad for value in self.parameters.values() if value.grad is not None)
        self.run.processes.average(each for each in gradients if not is_shard(each))  # those of shards are averaged
        for named in self.groups.values():
            nn.utils.clip_grad_norm_(named.values(), self.schedule.clip)
        self.optimizer.step()
        self.rows.append(losses)

    def _validate(self, value: float) -> None:
        if not self.validations or value < min(self.validations):
            self.best = {name: each.detach().clone() for name, each in self.parameters.items()}
        self.validations.append(value)

    def _has_stalled(self) -> bool:
        if not self.validations:
            return False
        return len(self.validations) - 1 - self.validations.index(min(self.validations)) >= self.schedule.patience

    def _check_weights(self) -> None:
        for name, value in self.parameters.items():
            if not all_finite(value):
                group, _, fqn = name.partition("/")
                raise JetvitError(
                    f"the weight {fqn} of {group} is not finite",
                    why=f"after the last step of the stage {self.stage}",
                    do="use a smaller learning rate",
                )

    def _save(self, done: bool) -> None:
        folder = self.run.folder
        if folder is None:
            return
        history = self.history()
        tensors = {"losses": history.losses}
        tensors |= {f"value/{name}": whole(value) for name, value in self.parameters.items()}
        if not done:
            tensors |= {f"best/{name}": whole(value) for name, value in self.best.items()}
            for name, value in self.parameters.items():
                for key, moment in self.optimizer.state.get(value, {}).items():
                    tensors[f"{key}/{name}"] = whole(moment)
        record = {
            "about": self.about,
            "done": done,
            "names": history.names,
            "seconds": self.seconds,
            "validations": self.validations,
        }
        shown = zip(self.rows, self.seconds, strict=True)
        folder.metrics(  # first: nobody would write those of a stage that is done
            self.stage,
            (
                (number + 1, sum(row.values()) / max(1, len(row)), self.schedule.rate(number), round(seconds, 3))
                for number, (row, seconds) in enumerate(shown)
            ),
        )
        folder.save(self.stage, tensors, record)

    def _resume(self) -> bool:
        """Go back to what was kept, if anything was; whether it is the end of the stage."""
        kept = self.run.folder.load(self.stage) if self.run.folder is not None else None
        if kept is None:
            return False
        tensors, record = kept
        if record["about"] != self.about:
            log.warning("the stage %s begins anew: what was kept is of %s", self.stage, record["about"])
            return False
        self.rows = [
            {name: value for name, value in zip(record["names"], row, strict=True) if not math.isnan(value)}
            for row in tensors.pop("losses").tolist()
        ]
        self.seconds, self.validations = record["seconds"], record["validations"]
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(like(tensors.pop(f"value/{name}"), value))
        for full_name, tensor in tensors.items():
            key, _, name = full_name.partition("/")
            parameter = self.parameters[name]
            if key == "best":
                self.best[name] = like(tensor, parameter)
            else:  # AdamW keeps its count of steps whole, and on the CPU
                self.optimizer.state[parameter][key] = tensor if key == "step" else like(tensor, parameter)
        return bool(record["done"])
