"""A rewritten model behaves like the module that it came from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import jetvit
from jetvit.passes.frontends.emit import OptimizedModule
from jetvit.patterns import RewriteError
from tests.passes.models import assert_close, plan_of, sites_of
from tests.zoo import CASES
from tests.zoo.case import images
from tests.zoo.handwritten import SIZE

IMAGE = images(2, 3, *SIZE)


@pytest.fixture
def pair() -> tuple[nn.Module, OptimizedModule]:
    model = CASES["separate"].build()
    return model, jetvit.optimize(model, IMAGE)


def test_modes_are_flags(pair: tuple[nn.Module, OptimizedModule]) -> None:
    _, optimized = pair
    expected = optimized(IMAGE)
    assert optimized.train() is optimized
    assert all(module.training for module in optimized.modules())
    assert_close(optimized(IMAGE), expected, 1e-7)
    assert optimized.eval() is optimized
    assert not any(module.training for module in optimized.modules())


def test_names_and_storage(pair: tuple[nn.Module, OptimizedModule]) -> None:
    """Every name is the model's own, but for what was merged and folded."""
    model, optimized = pair
    own, theirs = model.state_dict(), optimized.state_dict()
    new = set(theirs) - set(own)
    assert new == {f"blocks.{i}.attn.merged_qkv.{part}" for i in (0, 1) for part in ("weight", "bias")} | {
        "folded.value_upsample_bilinear2d"
    }
    gone = set(own) - set(theirs)
    assert gone == {f"blocks.{i}.attn.{r}.{p}" for i in (0, 1) for r in "qkv" for p in ("weight", "bias")} | {
        "pos_embed"
    }
    assert all(own[name].data_ptr() == theirs[name].data_ptr() for name in set(own) & set(theirs))
    assert dict(optimized.named_parameters())["norm.weight"] is not model.norm.weight
    assert isinstance(optimized.get_parameter("norm.weight"), nn.Parameter)


def test_an_edit_of_the_models_weight_is_seen(pair: tuple[nn.Module, OptimizedModule]) -> None:
    model, optimized = pair
    model.norm.bias.add_(1)
    model.blocks[0].mlp[0].weight.mul_(1.5)
    assert_close(optimized(IMAGE), model(IMAGE))


def test_a_replaced_parameter_is_not_the_models(pair: tuple[nn.Module, OptimizedModule]) -> None:
    """`requires_grad_` and a new `data` stay in the rewritten module."""
    model, optimized = pair
    optimized.requires_grad_(False)
    assert all(parameter.requires_grad for parameter in model.parameters())
    expected = model(IMAGE)
    optimized.norm.bias.data = torch.zeros_like(optimized.norm.bias)
    assert_close(model(IMAGE), expected, 1e-7)
    assert not torch.allclose(optimized(IMAGE), expected)


def test_to_where_it_is(pair: tuple[nn.Module, OptimizedModule]) -> None:
    model, optimized = pair
    assert optimized.to("cpu") is optimized
    assert optimized.to(torch.float32) is optimized
    assert optimized.float() is optimized
    assert_close(optimized(IMAGE), model(IMAGE))
    assert optimized.get_parameter("norm.weight").data_ptr() == model.norm.weight.data_ptr()


def test_to_another_device(pair: tuple[nn.Module, OptimizedModule]) -> None:
    """Devices stand in the graph's nodes as well as in the tensors; the model stays where it is."""
    model, optimized = pair
    expected = model(IMAGE)
    moved = optimized.to("meta")
    assert moved is optimized
    assert all(tensor.device.type == "meta" for tensor in optimized.state_dict().values())
    assert optimized(IMAGE.to("meta")).device.type == "meta"
    assert_close(model(IMAGE), expected, 1e-7)


@pytest.mark.gpu
def test_to_the_gpu(pair: tuple[nn.Module, OptimizedModule]) -> None:
    model, optimized = pair
    expected = model(IMAGE)
    assert_close(optimized.to("cuda")(IMAGE.cuda()).cpu(), expected, 1e-3)
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.parametrize(
    "change",
    [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double(), lambda m: m.to("cpu", torch.float16)],
)
def test_another_dtype_is_refused(pair: tuple[nn.Module, OptimizedModule], change: Callable[[nn.Module], Any]) -> None:
    model, optimized = pair
    with pytest.raises(
        RewriteError, match=r"captured for torch.float32\n.*on the original model, then jetvit.optimize"
    ):
        change(optimized)
    assert_close(optimized(IMAGE), model(IMAGE))


def test_a_deep_copy_is_its_own(pair: tuple[nn.Module, OptimizedModule]) -> None:
    _, optimized = pair
    twin = copy.deepcopy(optimized)
    expected = optimized(IMAGE)
    assert type(twin) is OptimizedModule
    assert twin.state_dict().keys() == optimized.state_dict().keys()
    for parameter in twin.parameters():
        parameter.zero_()
    assert_close(optimized(IMAGE), expected, 1e-7)
    assert not torch.allclose(twin(IMAGE), expected)


def test_state_goes_out_and_in(pair: tuple[nn.Module, OptimizedModule]) -> None:
    _, optimized = pair
    expected = optimized(IMAGE)
    twin = copy.deepcopy(optimized)
    for tensor in twin.state_dict().values():
        tensor.zero_()
    twin.load_state_dict(optimized.state_dict())
    assert_close(twin(IMAGE), expected, 1e-7)
    with pytest.raises(RuntimeError, match="merged_qkv"):
        twin.load_state_dict(CASES["separate"].build().state_dict())


def test_inside_another_module(pair: tuple[nn.Module, OptimizedModule]) -> None:
    """As a part of a larger model: names get its prefix, `to` and `eval` reach it."""
    model, optimized = pair
    larger = nn.Sequential(optimized, nn.LayerNorm(32)).eval()
    assert "0.blocks.0.attn.merged_qkv.weight" in larger.state_dict()
    assert_close(larger(IMAGE), larger[1](model(IMAGE)))
    assert larger.to("meta")(IMAGE.to("meta")).device.type == "meta"


def test_another_shape_is_refused(pair: tuple[nn.Module, OptimizedModule]) -> None:
    _, optimized = pair
    with pytest.raises(Exception, match=r"(?i)shape|guard|size"):
        optimized(images(2, 3, 48, 48))


def test_the_program_can_be_saved_from_it(pair: tuple[nn.Module, OptimizedModule]) -> None:
    _, optimized = pair
    assert_close(optimized.program.module()(IMAGE), optimized(IMAGE), 1e-7)
    optimized.program.validate()


def test_it_can_be_compiled_again(pair: tuple[nn.Module, OptimizedModule]) -> None:
    """By another backend, or by this one with the same plan."""
    model, _ = pair
    plan = plan_of(sites_of(model, IMAGE))
    optimized = jetvit.optimize(model, IMAGE, plan=plan)
    expected = optimized(IMAGE)
    assert_close(torch.compile(optimized, backend="eager")(IMAGE), expected)
    for options in ({"inner": "eager"}, {"inner": "eager", "plan": plan}):
        assert_close(torch.compile(optimized, backend="jetvit", options=options)(IMAGE), expected)


def test_gradients_flow(pair: tuple[nn.Module, OptimizedModule]) -> None:
    """The rewritten module is for inference, but it is no dead end for an input's gradient."""
    model, optimized = pair
    with torch.enable_grad():
        image = IMAGE.clone().requires_grad_()
        optimized(image).sum().backward()
        expected = IMAGE.clone().requires_grad_()
        model(expected).sum().backward()
    assert_close(image.grad, expected.grad, 1e-4)
