"""The rewritten model in training: what it yields is what its plan makes of the original."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import jetvit
from jetvit.cost_model import Plan
from jetvit.passes.frontends.capture import export_model
from jetvit.patterns.errors import PlanError
from jetvit.search.post_training.student import Student
from jetvit.search.post_training.supernet import Supernet
from tests.passes.models import assert_close
from tests.search.tiny import CONV, SIZE, WINDOW, disturb, small

IMAGES = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def net_of(model: nn.Module) -> Supernet:
    net = Supernet(export_model(model, (IMAGES,), {}), (CONV, WINDOW))
    disturb(net)
    return net


def trained(model: nn.Module, path: dict[str, object], steps: int = 2) -> tuple[Student, Plan]:
    """A student after some steps, and the plan that it began with."""
    program = export_model(model, (IMAGES,), {})
    plan = net_of(model).plan(path)  # type: ignore[arg-type]
    student = Student(program, plan)
    optimizer = torch.optim.SGD(student.parameters.values(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        student.model(IMAGES).square().mean().backward()
        optimizer.step()
    return student, plan


def test_all_weights_train_and_the_plan_has_them():
    model = small(3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    student, begin = trained(model, {"blocks.0.attn": CONV, "blocks.1.attn": WINDOW})
    assert student.inherited == set(before)
    assert set(student.parameters) == set(before) | {name for name in begin.weights if ".linear_attention." in name}
    plan = student.plan()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the original changed"
    assert {site.name: site.choice for site in plan.sites} == {site.name: site.choice for site in begin.sites}
    with torch.no_grad():
        expected = student.model(IMAGES)
        assert (expected - Student(export_model(model, (IMAGES,), {}), begin).model(IMAGES)).abs().max() > 1e-3
        assert torch.equal(student.program().module()(IMAGES), expected)
        assert_close(jetvit.optimize(model, IMAGES, plan=plan)(IMAGES), expected)


def test_a_program_is_of_the_moment():
    student, _ = trained(small(), {"blocks.0.attn": CONV})
    program = student.program()
    with torch.no_grad():
        before = program.module()(IMAGES)
        for value in student.parameters.values():
            value.add_(0.1)
        assert torch.equal(program.module()(IMAGES), before)
        assert not torch.equal(student.program().module()(IMAGES), before)


def test_untouched_weights_are_not_in_the_plan():
    model = small()
    untouched, begin = trained(model, {"blocks.0.attn": WINDOW, "blocks.1.attn": CONV}, steps=0)
    assert untouched.plan().digest() == begin.digest()
    assert not {name for name in untouched.plan().weights if "mlp" in name or "norm" in name}
    with torch.no_grad():
        untouched.parameters["blocks.0.mlp.0.bias"].add_(1)
    assert set(untouched.plan().weights) == set(begin.weights) | {"blocks.0.mlp.0.bias"}
    full, _ = trained(model, {}, steps=0)
    assert full.plan().weights == full.plan().base_samples == {}


def test_the_plan_knows_the_model_that_it_is_for():
    student, _ = trained(small(), {"blocks.0.attn": CONV})
    other = small()
    with torch.no_grad():
        other.blocks[0].attn.qkv.weight.mul_(-1)
    with pytest.raises(PlanError, match="a base weight is not the one that the plan was made on"):
        jetvit.optimize(other, IMAGES, plan=student.plan())


class Tied(nn.Module):
    """Blocks that share their MLP, and a weight with two names in one module."""

    def __init__(self):
        super().__init__()
        self.body = small()
        self.body.blocks[1].mlp = self.body.blocks[0].mlp
        self.gain = nn.Parameter(torch.ones(32))
        self.same_gain = self.gain

    def forward(self, image: Tensor) -> Tensor:
        return self.body(image * self.gain.mean()) * self.gain + self.same_gain


def test_shared_weights_stay_shared():
    model = Tied().eval()
    student, _ = trained(model, {"body.blocks.0.attn": CONV})
    own = dict(student.model.named_parameters(remove_duplicate=False))
    for one, other in (("body.blocks.0.mlp.0.weight", "body.blocks.1.mlp.0.weight"), ("gain", "same_gain")):
        names = [name for name in (one, other) if name in own]
        assert names, one
        assert len({id(own[name]) for name in names}) == 1, f"{one} and {other} went apart"
    originals = {value.data_ptr() for value in model.parameters()}
    assert not {value.data_ptr() for value in own.values()} & originals, "a weight is the original's"
    assert all(value.requires_grad for value in own.values())
    with torch.no_grad():
        expected = student.model(IMAGES)
        assert torch.equal(student.program().module()(IMAGES), expected)
        assert_close(jetvit.optimize(model, IMAGES, plan=student.plan())(IMAGES), expected)


def test_a_plan_of_another_model_is_refused():
    plan = net_of(small(3)).plan({"blocks.2.attn": CONV})
    with pytest.raises(PlanError):
        Student(export_model(small(), (IMAGES,), {}), plan)
