"""The supernet: the original to the bit on the full path, and on any other just what its plan emits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import jetvit
from benchmarks.whole_plans.plain_vit import PlainViT
from jetvit.cost_model import Choice
from jetvit.passes.frontends.capture import export_model
from jetvit.patterns.errors import InputError, JetvitError
from jetvit.search.post_training.branch import frozen
from jetvit.search.post_training.supernet import FULL, Supernet
from tests.passes.models import assert_close, exported
from tests.search.tiny import disturb
from tests.zoo import found
from tests.zoo.quick import sweep

LINEAR, CONV, WINDOW = Choice("linear"), Choice("linear", conv_size=3), Choice("window", window=(2, 3))
CHOICES = (LINEAR, CONV, WINDOW)
# In a region of the graph (autocast), which has no weights of its own, or with weights that two sites share.
NOT_CUT = {"autocast_attention", "autocast_sdpa", "autocast_model", "autocast_model_sdpa", "softmax_outside_autocast"}
NOT_CUT |= {"shared_block"}


def call(function: Any, inputs: tuple[Any, Any]) -> Any:
    with torch.no_grad():
        return function(*inputs[0], **inputs[1])


def small(depth: int = 3) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return PlainViT(depth, 32, 2).eval(), torch.randn(2, 3, 64, 96)


def net_of(model: nn.Module, image: Tensor, choices: tuple[Choice, ...] = CHOICES, **options: object) -> Supernet:
    return Supernet(export_model(model, (image,), {}), choices, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Supernet]:
    model, image = small()
    net = net_of(model, image)
    disturb(net)
    return model, image, net


def test_the_full_path_is_the_original_to_the_bit(trained: tuple[nn.Module, Tensor, Supernet]):
    model, image, net = trained
    with torch.no_grad():
        assert torch.equal(net(image), model(image))
        with net.path({"blocks.1.attn": LINEAR}):
            assert not torch.equal(net(image), model(image))
        assert torch.equal(net(image), model(image))


@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_what_is_trained_is_what_is_emitted(trained: tuple[nn.Module, Tensor, Supernet], data: st.DataObject):
    model, image, net = trained
    path = {name: data.draw(st.sampled_from((FULL, *CHOICES)), name) for name in net.choice_sites}
    plan = net.plan(path)
    with torch.no_grad():
        with net.path(path):
            expected = net(image)
        assert_close(jetvit.optimize(model, image, plan=plan)(image), expected)
    changed = {name for name, choice in path.items() if choice != FULL}
    assert {name for name in plan.weights if name.startswith("blocks.0.")} or "blocks.0.attn" not in changed
    assert all(name.rsplit(".", 2)[0].removesuffix(".linear_attention") in changed for name in plan.weights)
    assert {site.name: site.choice for site in plan.sites} == path


# Each is built, captured twice and run five times.
QUICK = (*NOT_CUT, "hf_vit_sdpa", "timm_dinov3_qkv_bias_fused", "reshape_patches", "separate_unfused")


@pytest.mark.parametrize("name", sweep([case.name for case in found()], quick=QUICK))
def test_models_of_the_zoo(name: str):
    model, inputs, program = exported(name)
    if name in NOT_CUT:
        with pytest.raises(JetvitError, match=r"is in a region of the graph|shares it with another site"):
            Supernet(program, (LINEAR, WINDOW))
        return
    net = Supernet(program, (LINEAR, WINDOW))
    assert net.kept_full == {}
    original = net.program.module()
    frozen(original)  # torch folds some products otherwise where a weight requires a gradient
    assert_close(call(net, inputs), call(original, inputs), tolerance=1e-30)  # to the bit
    assert_close(call(net, inputs), call(model, inputs))
    disturb(net)
    path = {
        site: LINEAR if index % 2 else net.choice_sites[site].choices[-1] for index, site in enumerate(net.choice_sites)
    }
    with net.path(path):
        expected = call(net, inputs)
    assert_close(call(jetvit.optimize(program, plan=net.plan(path)).module(), inputs), expected)


def test_untrained_windows_bring_no_weights_and_a_new_convolution_does_nothing(
    trained: tuple[nn.Module, Tensor, Supernet],
):
    model, image, _ = trained
    net = net_of(model, image)
    assert net.plan({"blocks.0.attn": WINDOW}).weights == {}
    with torch.no_grad():
        outputs = []
        for choice in (LINEAR, CONV):
            with net.path(dict.fromkeys(net.choice_sites, choice)):
                outputs.append(net(image))
    assert_close(*outputs)
    assert all(".linear_attention." in name for name in net.plan({"blocks.0.attn": CONV}).weights)


def test_each_choice_trains_its_own_weights_and_nothing_else(trained: tuple[nn.Module, Tensor, Supernet]):
    model, image, _ = trained
    before = copy.deepcopy(model.state_dict())
    net = net_of(model, image)
    path = {"blocks.0.attn": CONV, "blocks.2.attn": WINDOW}
    trainable = [value for value in net.parameters() if value.requires_grad]
    with net.path(path):
        net(image).square().mean().backward()
    touched = {name for name, value in net.named_parameters() if value.grad is not None}
    own = {id(v) for name, choice in path.items() for v in net.choice_sites[name].parameters_of(choice).values()}
    assert {id(value) for name, value in net.named_parameters() if name in touched} == own
    torch.optim.SGD(trainable, lr=0.1).step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.requires_grad and value.grad is None for value in model.parameters())
    with torch.no_grad():
        assert torch.equal(net(image), model(image))


def test_a_static_kernel_is_one_weight(trained: tuple[nn.Module, Tensor, Supernet]):
    model, image, _ = trained
    net = net_of(model, image, (CONV,), dynamic=False)
    own = [name for name in net.choice_sites["blocks.0.attn"].parameters_of(CONV) if ".linear_attention." in name]
    assert own == ["blocks.0.attn.linear_attention.b2"]
    disturb(net)
    path = {"blocks.0.attn": CONV}
    with torch.no_grad(), net.path(path):
        assert_close(jetvit.optimize(model, image, plan=net.plan(path))(image), net(image))


def test_the_seed_decides_new_weights(trained: tuple[nn.Module, Tensor, Supernet]):
    model, image, _ = trained
    one, same, other = (net_of(model, image, (CONV,), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_weights_of_other_parts_are_shared_not_copied(trained: tuple[nn.Module, Tensor, Supernet]):
    model, _, net = trained
    storages = {value.data_ptr() for value in model.parameters()}
    frozen = [value for value in net.parameters() if not value.requires_grad]
    assert frozen
    assert {value.data_ptr() for value in frozen} <= storages


def test_unknown_sites_and_choices_are_refused(trained: tuple[nn.Module, Tensor, Supernet]):
    _, _, net = trained
    for wrong in (FULL, LINEAR):
        with (
            pytest.raises(ValueError, match=r"there is no site blocks.9.attn: blocks.0.attn"),
            net.path({"blocks.9.attn": wrong}),
        ):
            pass
        with pytest.raises(ValueError, match=r"there is no site blocks.9.attn"):
            net.plan({"blocks.9.attn": wrong})
    five = Choice("linear", conv_size=5)
    with (
        pytest.raises(ValueError, match=r"blocks.0.attn cannot be linear relu conv5"),
        net.path({"blocks.0.attn": five}),
    ):
        pass


def test_a_window_over_the_whole_grid_is_no_choice():
    model, image = small(1)
    net = net_of(model, image, (LINEAR, Choice("window", window=(4, 6))))
    assert [choice.label for choice in net.choice_sites["blocks.0.attn"].choices] == ["full", LINEAR.label]
    with pytest.raises(JetvitError, match="no attention of the model can be searched"):
        net_of(model, image, (Choice("window", window=(4, 6)),))


def test_an_open_grid_is_refused():
    model, image = small(1)
    size = {2: 16 * torch.export.Dim("h", max=8), 3: 16 * torch.export.Dim("w", max=8)}
    program = export_model(model, (image,), {}, {"image": size})
    with pytest.raises(InputError, match="needs a fixed image size"):
        Supernet(program, CHOICES)


class Attend(nn.Module):
    """Attention whose parts may be another's, too."""

    def __init__(self, q: nn.Module | None = None, q_norm: nn.Module | None = None):
        super().__init__()
        self.q, self.q_norm = q or nn.Linear(32, 32), q_norm or nn.LayerNorm(16)
        self.k, self.v, self.out = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (2, 16)).transpose(1, 2) for each in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(self.q_norm(q), k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class Odd(nn.Module):
    """Two attentions after a patch embedding; `step` says how a block takes its attention's output."""

    def __init__(self, step: Any, **shared: nn.Module):
        super().__init__()
        self.embed, self.step = nn.Conv2d(3, 32, 16, 16), step
        self.attns = nn.ModuleList(Attend(**shared) for _ in range(2))

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image).flatten(2).transpose(1, 2)
        for attend in self.attns:
            x = self.step(attend, x)
        return x


def add(attend: nn.Module, x: Tensor) -> Tensor:
    return x + attend(x)


def chain(attend: nn.Module, x: Tensor) -> Tensor:
    return attend(x)


def add_to_output(attend: nn.Module, x: Tensor) -> Tensor:
    y = attend(x)
    y += x
    return y


def add_to_input(attend: nn.Module, x: Tensor) -> Tensor:
    x = x * 1.0
    x += attend(x)
    return x


def scale_output(attend: nn.Module, x: Tensor) -> Tensor:
    return x + attend(x).mul_(0.3)


ODD = {
    "shared norm": lambda: Odd(add, q_norm=nn.LayerNorm(16)),
    "shared projection": lambda: Odd(add, q=nn.Linear(32, 32)),
    "one after the other": lambda: Odd(chain),
    "added to the output": lambda: Odd(add_to_output),
    "added to the input": lambda: Odd(add_to_input),
    "scaled in place": lambda: Odd(scale_output),
}


@pytest.mark.parametrize(
    "name", sweep(ODD, quick=["shared norm", "shared projection", "one after the other", "added to the output"])
)
def test_shared_weights_chains_and_writes_in_place(name: str):
    torch.manual_seed(0)
    model, image = ODD[name]().eval(), torch.randn(2, 3, 64, 96)
    net = net_of(model, image, (LINEAR,))
    disturb(net)
    sites = list(net.choice_sites)
    assert sites == ["attns.0", "attns.1"]
    with torch.no_grad():
        original = net(image)
        assert_close(original, model(image))
        for path in ({sites[0]: LINEAR}, {sites[1]: LINEAR}, dict.fromkeys(sites, LINEAR)):
            with net.path(path):
                found = net(image)
            assert (found - original).abs().max() > 1e-3
            assert_close(found, jetvit.optimize(model, image, plan=net.plan(path))(image))
        with net.watching() as seen:
            net(image)
        for site, ((values, target),) in seen.items():
            assert_close(net.choice_sites[site].run(FULL, values), target)
