"""Capture runs the model's code without values, and leaves nothing of that behind."""

from __future__ import annotations

import functools
import logging
from collections import deque
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jetvit
from jetvit.passes.frontends.unchanged import unchanged
from tests.passes.models import assert_close
from tests.zoo import CASES
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import SIZE, Attention, TinyViT, sdpa

IMAGE = images(2, 3, *SIZE)


@functools.lru_cache
def cached_table(length: int) -> Tensor:
    return torch.arange(length).float()


class Tables:
    """No module: what a model asks for its tables."""

    def __init__(self) -> None:
        self.made: dict[int, Tensor] = {}

    def of(self, length: int) -> Tensor:
        if length not in self.made:
            self.made[length] = torch.arange(length).float()
        return self.made[length]


class Keeper(TinyViT):
    """Keeps tables in every way that models do."""

    def __init__(self) -> None:
        super().__init__(partial(Attention, sdpa))
        self.table: Tensor | None = None
        self.by_length: dict[int, Tensor] = {}
        self.kept: list[Tensor] = []
        self.last: deque[Tensor] = deque(maxlen=2)
        self.tables = Tables()
        self.nested = {"tables": {"made": [Tables()]}}
        self.positions: Tensor | None = None

    def forward(self, image: Tensor) -> Tensor:
        x = self.tokens(image)
        length = x.shape[1]
        if self.table is None:
            self.table = torch.arange(length).float()
            self.positions = self.table
        table = self.by_length.setdefault(length, torch.arange(length).float())
        self.kept.append(x)
        self.last.append(x)
        everywhere = (self.tables, self.nested["tables"]["made"][0])
        for each in (self.table, self.positions, table, cached_table(length), *(one.of(length) for one in everywhere)):
            x = x + 0.01 * each[:, None]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def state(model: Keeper) -> tuple[Any, ...]:
    one = model.nested["tables"]["made"][0]
    kept = (model.by_length, model.kept, list(model.last), model.tables.made, one.made)
    return (model.table, model.positions, *map(len, kept))


def test_tables_that_a_model_keeps_are_its_own() -> None:
    model = randomize(Keeper())
    before = state(model)
    fast = jetvit.optimize(model, IMAGE)
    assert state(model) == before == (None, None, 0, 0, 0, 0, 0)
    expected = model(IMAGE)
    assert_close(fast(IMAGE), expected)
    after = state(model)
    jetvit.find_attention(model, IMAGE)
    assert all(a is b or a == b for a, b in zip(state(model), after, strict=True))
    assert_close(model(IMAGE), expected)


def test_dictionaries_of_hooks_stay_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    model, kept, called = randomize(TinyViT(partial(Attention, sdpa))), {}, []

    class Recorder:
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
            self.seen.append(output)

        def before(self, module: nn.Module, args: Any) -> None:
            self.seen.extend(args)

    recorder = Recorder()
    model.blocks[0].register_forward_hook(lambda module, args, output: kept.__setitem__("out", output))
    model.blocks[1].register_forward_hook(recorder)
    model.blocks[1].register_forward_pre_hook(recorder.before)
    model.norm.register_forward_hook(partial(lambda into, module, args, output: into.append(output), called))
    with caplog.at_level(logging.WARNING, "jetvit"):
        fast = jetvit.optimize(model, IMAGE)
    assert (kept, recorder.seen, called) == ({}, [], [])
    (warning,) = [record.getMessage() for record in caplog.records if "hook" in record.getMessage()]
    assert warning == "forward hooks of blocks.0 and 2 more: the result does not call them"
    assert_close(fast(IMAGE), model(IMAGE))
    assert not isinstance(kept["out"], torch._subclasses.FakeTensor)


def test_a_hook_that_changes_the_result_is_in_the_graph() -> None:
    model = randomize(TinyViT(partial(Attention, sdpa)))
    model.blocks[0].register_forward_hook(lambda module, args, output: output * 2)
    assert_close(jetvit.optimize(model, IMAGE)(IMAGE), model(IMAGE))


def test_what_the_code_raises_leaves_nothing_either() -> None:
    model = nn.Linear(2, 2)
    model.seen = [1]

    def fail() -> None:
        model.seen.append(2)
        model.other = 3
        raise RuntimeError

    with pytest.raises(RuntimeError), unchanged(model):
        fail()
    assert model.seen == [1]
    assert not hasattr(model, "other")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in CASES])
def test_every_model_is_what_it_was(name: str) -> None:
    case = CASES[name]
    model, (args, kwargs) = case.build(), case.inputs()
    before = [dict(vars(module)) for module in model.modules()]
    jetvit.find_attention(model, *args, kwargs=kwargs)
    after = [dict(vars(module)) for module in model.modules()]
    for one, other in zip(before, after, strict=True):
        assert one.keys() == other.keys()
        assert all(one[key] is other[key] for key in one)
    for tensor in model.state_dict().values():
        assert not isinstance(tensor, torch._subclasses.FakeTensor)
