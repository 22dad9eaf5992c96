"""A rewritten model is called as the original was."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import jetvit
from jetvit.patterns import CaptureError, InputError
from tests.passes.models import assert_close
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import SIZE, Attention, TinyViT, sdpa

IMAGE = images(2, 3, *SIZE)


class Options(TinyViT):
    """As models of transformers are called: an input, an optional one, a switch, and whatever else."""

    def forward(self, pixels: Tensor, bias: Tensor | None = None, *, double: bool = False, **others: Any) -> Tensor:
        y = super().forward(pixels if bias is None else pixels + bias)
        return y * 2 if double else y


def model() -> Options:
    return randomize(Options(partial(Attention, sdpa)))


def test_by_position_and_by_name() -> None:
    original, bias = model(), images(2, 3, *SIZE) + 1
    plain, biased = jetvit.optimize(original, IMAGE), jetvit.optimize(original, IMAGE, kwargs={"bias": bias})
    for fast in (plain, copy.deepcopy(plain), jetvit.optimize(plain)):
        for result in (fast(IMAGE), fast(pixels=IMAGE), fast(IMAGE, None), fast(IMAGE, bias=None, double=False)):
            assert_close(result, original(IMAGE))
    for result in (biased(IMAGE, bias), biased(IMAGE, bias=bias), biased(bias=bias, pixels=IMAGE)):
        assert_close(result, original(IMAGE, bias))
    assert_close(torch.compile(plain, backend="eager")(IMAGE), original(IMAGE))


def test_another_call_is_refused_in_the_models_words() -> None:
    fast = jetvit.optimize(model(), IMAGE)
    with pytest.raises(InputError, match=r"does not take bias(.|\n)*captured without it"):
        fast(IMAGE, IMAGE)
    with pytest.raises(InputError, match="does not take double"):
        fast(IMAGE, double=True)
    with pytest.raises(InputError, match="does not take label"):
        fast(IMAGE, label=1)
    with pytest.raises(InputError, match="needs pixels"):
        fast()
    with pytest.raises(InputError, match=r"pixels is \[3, 3, 32, 48\], captured was \[2, 3, 32, 48\]") as refused:
        fast(images(3, 3, *SIZE))
    assert "dynamic_shapes={'pixels': {0: torch.export.Dim.DYNAMIC}}; or" in refused.value.do
    with pytest.raises(InputError, match=r"do: optimize for an input of this shape$"):
        fast(IMAGE[0])
    with pytest.raises(TypeError, match="too many positional"):
        fast(IMAGE, None, None)


def test_an_open_batch_needs_an_example_of_two() -> None:
    one, two = images(1, 3, *SIZE), images(2, 3, *SIZE)
    named, auto = ({"pixels": {0: size}} for size in (torch.export.Dim("batch"), torch.export.Dim.AUTO))
    with pytest.raises(CaptureError, match="do: give example inputs whose open sizes are at least 2"):
        jetvit.optimize(model(), one, dynamic_shapes=named)
    fast = jetvit.optimize(model(), one, dynamic_shapes=auto)  # torch closes such an axis without a word
    with pytest.raises(InputError, match=r"{0: torch\.export\.Dim\.DYNAMIC}}, with an example of at least 2 there;"):
        fast(two)
    original = model()
    assert_close(jetvit.optimize(original, two, dynamic_shapes=auto)(one), original(one))


def test_an_open_batch_takes_any() -> None:
    original = model()
    fast = jetvit.optimize(original, IMAGE, dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}})
    for batch in (1, 2, 5):
        assert_close(fast(pixels=images(batch, 3, *SIZE)), original(images(batch, 3, *SIZE)))
