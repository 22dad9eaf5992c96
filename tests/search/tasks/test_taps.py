"""Taps: where a head reads, without a change to what the model yields."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jetvit.cost_model import Choice
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.patterns.errors import InputError
from jetvit.patterns.find import find_sites
from jetvit.search.post_training.supernet import Supernet
from jetvit.search.tasks.taps import Taps, blocks_of, evenly, read_by_the_head
from tests.passes.models import assert_close
from tests.search.tiny import SIZE, small
from tests.zoo import CASES
from tests.zoo.hf import since

# By model: its blocks, and those that something behind the blocks reads.
READ = {
    "hf_dinov3_sdpa": (since("5.17", "model.layer.{}", "layer.{}"), [0, 1], [1]),
    "hf_depth_anything_sdpa": ("backbone.encoder.layer.{}", [0, 1, 2, 3], [0, 1, 2, 3]),
    "timm_vit_fused": ("blocks.{}", [0, 1], [1]),
}


def call(function: Any, inputs: tuple[Any, Any]) -> Any:
    with torch.no_grad():
        return function(*inputs[0], **inputs[1])


@pytest.mark.parametrize("name", READ)
def test_real_models(name: str, frozen_imports: None):
    template, numbers, read = READ[name]
    case = CASES[name]
    model, inputs = case.build(), case.inputs()
    seen: dict[str, Tensor] = {}

    def keep(block: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen[block] = (output[0] if isinstance(output, tuple) else output).clone()

        return hook

    program = export_model(model, *inputs)
    net = Supernet(program, (Choice("linear"),))
    assert blocks_of(net.sites) == [template.format(number) for number in numbers]
    found = read_by_the_head(net.model, blocks_of(net.sites))
    assert found == [template.format(number) for number in read]
    for block in found:
        model.get_submodule(block).register_forward_hook(keep(block))
    expected = call(model, inputs)
    before = call(net, inputs)
    taps = Taps(net.model, found, net.sites[0])
    with taps.reading():
        after = call(net, inputs)
        tokens = taps.tokens()
        maps = taps.maps(tokens)
    assert_close(after, before, tolerance=1e-30)
    assert_close(after, expected)
    height, width = case.grid(case.size)
    for block, each, grid in zip(found, tokens, maps, strict=True):
        torch.testing.assert_close(each, seen[block], rtol=1e-4, atol=1e-5)
        assert grid.shape == (len(each), each.shape[2], height, width)
        own = each[:, case.extra_before : case.extra_before + height * width]
        assert torch.equal(grid[0, :, 1, 2], own[0, width + 2])
    assert taps.channels == [each.shape[2] for each in tokens]


def graph_of(model: nn.Module, size: tuple[int, int] = SIZE) -> Supernet:
    return Supernet(export_model(model.eval(), (torch.zeros(2, 3, *size),), {}), (Choice("linear"),))


def test_only_what_passes_while_reading_is_kept():
    net = graph_of(small())
    taps = Taps(net.model, ["blocks.0"], net.sites[0])
    image = torch.randn(2, 3, *SIZE)
    net(image)
    with taps.reading(), pytest.raises(AssertionError, match="nothing has passed"):
        taps.tokens()
    with taps.reading():
        net(image)
        first = taps.tokens()[0]
        net(image * 2)
        assert not torch.equal(taps.tokens()[0], first)
    with pytest.raises(AssertionError, match="nothing has passed"):
        taps.tokens()


def test_taps_stand_in_the_order_that_was_asked_for():
    net = graph_of(small(3))
    one, other = (Taps(graph_of(small(3)).model, names, net.sites[0]) for names in (["blocks.0"], ["blocks.2"]))
    assert (one.blocks, other.blocks) == (("blocks.0",), ("blocks.2",))
    image, found = torch.randn(2, 3, *SIZE), {}
    for names in (("blocks.0", "blocks.2"), ("blocks.2", "blocks.0")):
        net = graph_of(small(3))
        taps = Taps(net.model, names, net.sites[0])
        with taps.reading():
            net(image)
            found[names] = taps.tokens()
    first, turned = found.values()
    assert torch.equal(first[0], turned[1])
    assert torch.equal(first[1], turned[0])
    assert not torch.equal(*first)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.9", "nothing leaves the block blocks.9"),
        ("block.0", "nothing leaves the block block.0"),
        ("patch_embed", "patch_embed yields no tokens"),
    ],
)
def test_what_is_no_block_is_refused(name: str, message: str):
    net = graph_of(small())
    with pytest.raises(InputError, match=message):
        Taps(net.model, [name], net.sites[0])


class Overwritten(nn.Module):
    """What follows a block writes into its output."""

    def __init__(self):
        super().__init__()
        self.body = small()

    def forward(self, image: Tensor) -> Tensor:
        x = self.body.patch_embed(image).flatten(2).transpose(1, 2)
        x = self.body.blocks[0](x)
        x += 1
        return self.body.blocks[1](x)


def test_what_is_read_is_what_left_the_block():
    model = Overwritten().eval()
    seen: list[Tensor] = []
    model.body.blocks[0].register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    net = graph_of(model)
    seen.clear()
    taps = Taps(net.model, ["body.blocks.0"], net.sites[0])
    image = torch.randn(2, 3, *SIZE)
    with torch.no_grad(), taps.reading():
        assert_close(net(image), model(image))
        assert_close(taps.tokens()[0], seen[0])


class Reads(nn.Module):
    """A head that reads the blocks of some numbers."""

    def __init__(self, numbers: tuple[int, ...]):
        super().__init__()
        self.body, self.numbers = small(3), numbers

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.body.patch_embed(image).flatten(2).transpose(1, 2)
        outputs = []
        for block in self.body.blocks:
            x = block(x)
            outputs.append(x)
        return [F.relu(outputs[number]) for number in self.numbers]


@pytest.mark.parametrize("numbers", [(2,), (0,), (0, 2), (1, 2), (0, 1, 2)])
def test_blocks_that_are_read(numbers: tuple[int, ...]):
    net = graph_of(Reads(numbers))
    blocks = [f"body.blocks.{number}" for number in range(max(numbers) + 1)]
    assert read_by_the_head(net.model, blocks) == [f"body.blocks.{number}" for number in numbers]


def test_blocks_evenly_spaced():
    blocks = [str(number) for number in range(12)]
    assert evenly(blocks, 4) == ["2", "5", "8", "11"]
    for count in range(1, 13):
        found = evenly(blocks, count)
        places = [int(each) for each in found]
        gaps = [after - before for before, after in zip([-1, *places], places, strict=False)]
        assert found[-1] == "11"
        assert len(found) == count
        assert max(gaps) - min(gaps) <= 1
    for wrong in (0, 13):
        with pytest.raises(InputError, match=f"{wrong} taps in 12 blocks"):
            evenly(blocks, wrong)


def test_a_site_without_a_number_has_no_block(frozen_imports: None):
    case = CASES["torchvision_vit"]
    sites = find_sites(ExportedGraph(export_model(case.build(), *case.inputs())))
    with pytest.raises(InputError, match=r"the block of the attention encoder\.layers\.encoder_layer_0") as error:
        blocks_of(sites)
    assert error.value.why == "no part of its name is a number"
