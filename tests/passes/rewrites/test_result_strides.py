"""What a graph returns stands in memory as what the model returns, so that it can be viewed."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

import jetvit
from tests.passes.models import assert_close, compiled, plan_of
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import SIZE, Attention, TinyViT, scale_on_product, sdpa
from tests.zoo.quick import sweep

IMAGE = images(2, 3, *SIZE)


class Feature(Attention):
    """Keeps what its attention yields, for the model to return."""

    def forward(self, x: Tensor) -> Tensor:
        self.mixed = self.attend(*self.split(x))
        return self.proj(self.mixed.transpose(1, 2).reshape(x.shape))


class Features(TinyViT):
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        y = super().forward(image)
        mixed = tuple(block.attn.mixed for block in self.blocks)
        return y, *mixed, *(each.transpose(1, 2) for each in mixed)


class Viewed(Feature):
    """A graph break behind the attention: the second graph views what the first one yields."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        torch._dynamo.graph_break()
        return y + self.mixed.view(-1, *self.mixed.shape[2:]).mean()


@pytest.mark.parametrize(
    ("is_open", "attend"),
    sweep(product([False, True], [sdpa, scale_on_product]), quick=[(False, scale_on_product), (True, sdpa)]),
)
def test_offline(attend, is_open: bool) -> None:
    model = randomize(Features(partial(Feature, attend)))
    shapes = ({0: torch.export.Dim("batch")},) if is_open else None
    plan = plan_of(jetvit.find_attention(model, IMAGE))
    exact, changed = (jetvit.optimize(model, IMAGE, plan=each, dynamic_shapes=shapes) for each in (None, plan))
    for batch in (2, 3) if is_open else (2,):
        image = images(batch, 3, *SIZE)
        for ours, theirs, other in zip(exact(image), model(image), changed(image), strict=True):
            assert ours.stride() == theirs.stride() == other.stride()
            assert_close(ours, theirs)


def test_across_a_graph_break() -> None:
    model = randomize(TinyViT(partial(Viewed, scale_on_product)))
    assert_close(compiled(model)(IMAGE), model(IMAGE))
