"""`torch.compile(model, backend="jetvit")`: options, instances, edits of weights, and the inner backend."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_inductor_cache

import jetvit
from jetvit.backend import BackendOptions
from jetvit.backend import jetvit as backend
from jetvit.cost_model import sample_base
from jetvit.patterns import CaptureError, InputError, PlanError
from tests.passes.models import WINDOW, assert_close, compiled, count, error, exported, plan_of, planned
from tests.zoo import CASES
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import SCALE, SIZE, Attention, Block, SeparateAttention, TinyViT, scale_on_product, sdpa
from tests.zoo.quick import sweep

IMAGE = images(2, 3, *SIZE)
CHANGED = "blocks.0.attn.qkv.weight"


@pytest.fixture(autouse=True)
def _inference(frozen_imports: None) -> Iterator[None]:
    with torch.no_grad():
        yield


def vit(seed: int = 0) -> TinyViT:
    """Instances of other seeds have other weights, which were edited as often."""
    return randomize(TinyViT(partial(Attention, scale_on_product)), seed)


def trained(model: nn.Module) -> jetvit.Plan:
    """A plan with a changed weight."""
    weights = {CHANGED: model.state_dict()[CHANGED] * 1.5}
    samples = sample_base(dict(model.named_parameters()))
    return plan_of(jetvit.find_attention(model, IMAGE), weights=weights, base_samples=samples)


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plann": 1}, "no option 'plann'\n.*did you mean 'plan'"),
        ({"freze": True}, "no option 'freze'\n.*did you mean 'freeze'"),
        ({"max_autotune": True}, "no option 'max_autotune'\n.*its options are plan, inner, inner_options, freeze"),
        ({"inner": "inducto"}, "no inner backend 'inducto'\n.*did you mean 'inductor'"),
        ({"inner": "zzz"}, "no inner backend 'zzz'\n.*the backends are .*eager"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(options: dict[str, Any], message: str) -> None:
    """Also through Dynamo, which wraps the error of a backend in its own."""
    with pytest.raises(BackendCompilerFailed, match=f"InputError: .*{message}") as refusal:
        torch.compile(vit(), backend="jetvit", options=options)(IMAGE)
    assert isinstance(refusal.value.inner_exception, InputError)


def test_options_are_fields() -> None:
    assert BackendOptions.parse(None) == BackendOptions()
    assert BackendOptions.parse({"freeze": True}).freeze
    assert BackendOptions().inner == "inductor"


def test_a_mode_is_for_inductor() -> None:
    gm = torch.fx.symbolic_trace(nn.Identity())
    with pytest.raises(InputError, match="mode='max-autotune' is for Inductor, and the inner backend is 'eager'"):
        backend(gm, [IMAGE], options={"inner": "eager"}, mode="max-autotune")


def test_the_name_of_an_inner_backend_of_ones_own() -> None:
    gm = torch.fx.symbolic_trace(nn.Identity())
    with pytest.raises(InputError, match=r"the inner backend is [\w.]*test_backend\.vit\n"):
        backend(gm, [IMAGE], options={"inner": vit}, mode="max-autotune")


def values_leave_torch(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy() + 1)


def test_a_graph_that_cannot_be_traced() -> None:
    """It is left as it is; with a plan it is refused."""
    graph = torch.fx.Graph()
    graph.output((graph.call_function(values_leave_torch, (graph.placeholder("x"),)),))
    gm = torch.fx.GraphModule({}, graph)
    (result,) = backend(gm, [IMAGE], options={"inner": "eager"})(IMAGE)
    assert torch.equal(result, IMAGE + 1)
    plan = plan_of(jetvit.find_attention(vit(), IMAGE))
    with pytest.raises(CaptureError, match=r"this graph of torch\.compile cannot be traced") as refusal:
        backend(gm, [IMAGE], options={"inner": "eager", "plan": plan})
    assert "in values_leave_torch" in refusal.value.where


def test_an_inner_backend_of_ones_own() -> None:
    seen = []

    def inner(gm: torch.fx.GraphModule, inputs: list[Tensor], options: Any = None) -> Callable[..., Any]:
        seen.append((count(gm, torch.ops.jetvit.window_attention.default), len(inputs), options))
        return gm

    model = vit()
    plan = plan_of(jetvit.find_attention(model, IMAGE), [WINDOW])
    result = compiled(model, inner, plan=plan)(IMAGE)
    assert_close(result, planned(model, ((IMAGE,), {}), plan))
    inputs = 1 + len(list(model.parameters()))
    assert seen == [(2, inputs, None)]
    torch._dynamo.reset()
    compiled(model, inner, inner_options={"a": 1})(IMAGE)
    assert seen[1:] == [(0, inputs, {"a": 1})]


def test_a_plan_folder_as_an_option(tmp_path: Path) -> None:
    model = vit()
    plan = plan_of(jetvit.find_attention(model, IMAGE))
    plan.save(tmp_path / "plan")
    assert_close(compiled(model, plan=str(tmp_path / "plan"))(IMAGE), planned(model, ((IMAGE,), {}), plan))
    torch._dynamo.reset()
    with pytest.raises(BackendCompilerFailed, match=r"PlanError: .*(.|\n)*nowhere"):
        compiled(model, plan=str(tmp_path / "nowhere"))(IMAGE)


def test_another_models_plan() -> None:
    plan = plan_of(jetvit.find_attention(exported("headless")[2]))
    with pytest.raises(BackendCompilerFailed, match=r"PlanError: the plan is for another model(.|\n)*num_heads"):
        compiled(vit(), plan=plan)(IMAGE)


def test_it_is_found_in_a_fresh_process(tmp_path: Path) -> None:
    """Through its entry point: `import jetvit` is not needed."""
    code = """
import torch
assert "jetvit" in torch.compiler.list_backends()
linear = torch.nn.Linear(3, 3)
function = torch.compile(linear, backend="jetvit", options={"inner": "eager"})
x = torch.ones(2, 3)
torch.testing.assert_close(function(x), linear(x))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


# --- Inductor ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "with_plan"),
    [
        ("separate_unfused", True),
        pytest.param("hf_dinov3_sdpa", True, marks=pytest.mark.slow),
        pytest.param("hf_dinov3_eager", False, marks=pytest.mark.slow),
        pytest.param("softmax_outside_autocast", True, marks=pytest.mark.slow),
        pytest.param("timm_vit_unfused", True, marks=pytest.mark.slow),
        pytest.param("dict_to_dataclass", False, marks=pytest.mark.slow),
    ],
)
def test_inductor(name: str, with_plan: bool) -> None:
    model, inputs, program = exported(name)
    plan = plan_of(jetvit.find_attention(program)) if with_plan else None
    expected = planned(program, inputs, plan) if plan is not None else model(*inputs[0], **inputs[1])
    result = compiled(model, "inductor", plan=plan)(*inputs[0], **inputs[1])
    assert_close(result, expected, 2e-2 if "autocast" in name else 1e-5)


@pytest.mark.slow
def test_graphs_that_torch_keeps_are_not_those_of_other_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch keeps compiled graphs on disk by the operators' names: after an upgrade it would run the old code."""
    model, (args, kwargs), program = exported("sdpa")
    plan = plan_of(jetvit.find_attention(program), (WINDOW,))

    def hits() -> int:
        torch.compiler.reset()
        counters.clear()
        with torch.no_grad():
            compiled(model, "inductor", plan=plan)(*args, **kwargs)
        return counters["aot_autograd"]["autograd_cache_hit"] + counters["inductor"]["fxgraph_cache_hit"]

    with fresh_inductor_cache():
        assert hits() == 0
        assert hits() > 0
        monkeypatch.setattr("jetvit.backend._kernels_digest", lambda: "of an older version")
        assert hits() == 0


@pytest.mark.slow
def test_inductor_with_open_sizes_weights_and_a_mode() -> None:
    model = vit()
    plan = trained(model)
    changed = copy.deepcopy(model)
    changed.load_state_dict({**model.state_dict(), **plan.weights})
    image = IMAGE.clone()
    for dim in (0, 2, 3):
        torch._dynamo.mark_dynamic(image, dim)
    function = compiled(model, "inductor", plan=plan, inner_options={"max_autotune": False})
    function(image)
    with torch._dynamo.config.patch(error_on_recompile=True):
        other = images(3, 3, 48, 40)  # more than one window an axis, as before: one window is compiled apart
        assert_close(function(other), planned(changed, ((other,), {}), plan))
    torch._dynamo.reset()
    reduced = torch.compile(model, backend="jetvit", mode="max-autotune-no-cudagraphs")
    assert_close(reduced(IMAGE), model(IMAGE))


# --- whose weights they are -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_plan", [False, True], ids=["exact", "plan"])
def test_two_instances_share_a_graph_and_no_weights(with_plan: bool) -> None:
    first, second = vit(), vit(seed=1)
    plan = plan_of(jetvit.find_attention(first, IMAGE)) if with_plan else None
    functions = [compiled(model, plan=plan) for model in (first, second)]
    expected = [planned(model, ((IMAGE,), {}), plan) if plan is not None else model(IMAGE) for model in (first, second)]
    assert error(*expected) > 0.1
    for _ in range(2):
        for function, wanted in zip(functions, expected, strict=True):
            assert_close(function(IMAGE), wanted)


@pytest.mark.parametrize("with_plan", [False, True], ids=["exact", "plan"])
def test_an_edit_after_compilation_is_seen(with_plan: bool) -> None:
    model = vit()
    plan = plan_of(jetvit.find_attention(model, IMAGE)) if with_plan else None
    function = compiled(model, plan=plan)
    before = function(IMAGE)
    model.norm.bias.add_(1)
    model.blocks[1].attn.qkv.weight.mul_(0.5)
    model.pos_embed.mul_(2)
    expected = planned(model, ((IMAGE,), {}), plan) if plan is not None else model(IMAGE)
    assert_close(function(IMAGE), expected)
    assert error(before, expected) > 0.1
    model.load_state_dict(vit(seed=1).state_dict())
    expected = planned(model, ((IMAGE,), {}), plan) if plan is not None else model(IMAGE)
    assert_close(function(IMAGE), expected)


def replace_bias(model: nn.Module) -> None:
    """Another parameter that was edited as often."""
    bias = nn.Parameter(model.norm.bias + 1)
    while bias._version < model.norm.bias._version:
        bias.mul_(1)
    model.norm.bias = bias


def frozen(model: nn.Module) -> Callable[..., Any]:
    return compiled(model, freeze=True)


def with_weights(model: nn.Module) -> Callable[..., Any]:
    return compiled(model, plan=trained(model))


def edit_bias(model: nn.Module) -> None:
    model.norm.bias.add_(1)


def load_others(model: nn.Module) -> None:
    model.load_state_dict(vit(seed=1).state_dict())


@pytest.mark.parametrize(
    ("edit", "tie"),
    sweep(
        product([edit_bias, load_others, replace_bias], [frozen, with_weights]),
        quick=[(edit_bias, frozen), (load_others, with_weights), (replace_bias, with_weights)],
    ),
)
def test_an_edit_of_tied_weights_is_refused(tie: Callable[..., Any], edit: Callable[[nn.Module], Any]) -> None:
    model = vit()
    function = tie(model)
    expected = function(IMAGE)
    assert_close(function(IMAGE), expected, 1e-7)
    edit(model)
    if tie is frozen and edit is replace_bias:  # another tensor is another set of weights, and compiled for itself
        assert_close(function(IMAGE), model(IMAGE))
        return
    with pytest.raises(Exception, match=r"belongs? to other parameters|not the one that the plan was made on"):
        function(IMAGE)


def test_a_second_instance_is_not_what_the_plan_was_made_on() -> None:
    """The compiled code is found again by the class, so the parameters are compared at every call."""
    first = vit()
    function = with_weights(first)
    expected = function(IMAGE)
    with pytest.raises(Exception, match=r"to other parameters|not the one that the plan was made on"):
        compiled(vit(seed=1), plan=trained(first))(IMAGE)
    assert_close(function(IMAGE), expected, 1e-7)


def test_every_instance_is_frozen_by_itself() -> None:
    models = [vit(seed=seed) for seed in range(3)]
    functions = [frozen(model) for model in models]
    for _ in range(2):
        for model, function in zip(models, functions, strict=True):
            assert_close(function(IMAGE), model(IMAGE))
    models[1].norm.bias.detach().mul_(2)
    with pytest.raises(PlanError, match="the frozen graph belongs to other parameters"):
        functions[1](IMAGE)
    assert_close(functions[2](IMAGE), models[2](IMAGE))


class Loud(nn.Module):
    """Breaks the graph in front of each attention: Dynamo has one code for all blocks."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return self.attention(x)


def test_blocks_behind_a_break_are_frozen_one_by_one() -> None:
    model = vit()
    for block in model.blocks:
        block.attn = Loud(block.attn)
    assert_close(frozen(model)(IMAGE), model(IMAGE))


def test_a_graph_without_attention_goes_on_as_it_came() -> None:
    graphs = []

    def inner(gm: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(gm)
        return gm

    linear = nn.Linear(3, 3)
    assert_close(compiled(linear, inner)(torch.ones(2, 3)), linear(torch.ones(2, 3)))
    assert [node.target for node in graphs[0].graph.nodes if node.op == "call_function"] == [torch._C._nn.linear]


def test_each_with_a_plan_of_its_own() -> None:
    first, second = vit(), vit(seed=1)
    plans = [trained(model) for model in (first, second)]
    functions = [compiled(model, plan=plan) for model, plan in zip((first, second), plans, strict=True)]
    for model, plan, function in zip((first, second), plans, functions, strict=True):
        changed = copy.deepcopy(model)
        changed.load_state_dict({**model.state_dict(), **plan.weights})
        assert_close(function(IMAGE), planned(changed, ((IMAGE,), {}), plan))


def test_after_a_reset_the_new_weights_are_taken() -> None:
    model = vit()
    function = frozen(model)
    function(IMAGE)
    model.norm.bias.add_(1)
    with pytest.raises(PlanError, match=r"the frozen graph belongs to other parameters(.|\n)*torch.compiler.reset"):
        function(IMAGE)
    torch.compiler.reset()
    assert_close(function(IMAGE), model(IMAGE))


def test_freezing_folds_and_merges() -> None:
    graphs = []

    def inner(gm: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(gm)
        return gm

    model = CASES["separate"].build()
    for freeze in (False, True):
        torch._dynamo.reset()
        assert_close(compiled(model, inner, freeze=freeze)(IMAGE), model(IMAGE))
    free, tied = graphs
    linear, resize = torch.ops.aten.linear.default, torch.ops.aten.upsample_bilinear2d.vec
    assert (count(free, linear), count(tied, linear)) == (12, 8)
    assert (count(free, resize), count(tied, resize)) == (1, 0)


def test_a_frozen_model_is_not_kept_alive() -> None:
    """What is compiled holds no parameter of the caller."""
    model = CASES["sdpa"].build()
    seen = weakref.ref(model.blocks[0].attn.qkv.weight)
    function = frozen(model)
    function(IMAGE)
    del model, function
    torch._dynamo.reset()
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize(
    ("made", "tie"),
    sweep(product([False, True], [frozen, with_weights]), quick=[(False, with_weights), (True, frozen)]),
)
def test_inference_mode(tie: Callable[..., Any], made: bool) -> None:
    """Tensors that are made in it keep no count of their edits and take no gradient."""
    with torch.inference_mode(made):
        model = CASES["separate"].build() if tie is frozen else vit()
        function = tie(model)
    with torch.inference_mode():
        result = function(IMAGE)
        if tie is frozen:
            assert_close(result, model(IMAGE))


# --- models that write ------------------------------------------------------------------------------------------------


class InPlaceBlock(Block):
    """Residuals in place."""

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        x.add_(self.attn(self.norm1(x)))
        x += self.mlp(self.norm2(x))
        return x


class InPlaceScale(SeparateAttention):
    """Scales q in place, once through a view."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
        q.mul_(0.7)
        q *= SCALE / 0.7
        return self.o(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(x.shape))


class EditedResult(Attention):
    """Scales the result in place, through a flat view."""

    def forward(self, x: Tensor) -> Tensor:
        out = scale_on_product(*self.split(x))
        out.view(-1).mul_(2)
        return self.proj(out.transpose(1, 2).reshape(x.shape))


class EditedCopy(Attention):
    """Edits what `reshape` copied: the original is read after it."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(1, 2).reshape(x.shape[0], -1).reshape(x.shape[0], x.shape[2], x.shape[1])
        y.mul_(2)
        return super().forward(x) + y.transpose(1, 2)


class EditedLater(Attention):
    """Edits the packed product after the attention has read it."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x)
        out = scale_on_product(*qkv.reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0))
        qkv.mul_(2)
        return self.proj(out.transpose(1, 2).reshape(x.shape)) + qkv[..., :c]


WRITERS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: TinyViT(partial(SeparateAttention, scale_on_product), block=InPlaceBlock),
    "scale": lambda: TinyViT(InPlaceScale),
    "result": lambda: TinyViT(partial(EditedResult, sdpa)),
    "copy": lambda: TinyViT(partial(EditedCopy, sdpa)),
    "later": lambda: TinyViT(partial(EditedLater, sdpa)),
}


@pytest.mark.parametrize(
    ("name", "with_plan"),
    sweep(
        product(WRITERS, [False, True]),
        quick=[("residual", True), ("later", False), ("copy", True), ("scale", False), ("result", True)],
    ),
)
def test_models_that_write_in_place(name: str, with_plan: bool) -> None:
    """Twice, on both roads: the second run must not see what the first one wrote."""
    model = randomize(WRITERS[name]())
    plan = plan_of(jetvit.find_attention(model, IMAGE)) if with_plan else None
    before = IMAGE.clone()
    expected = planned(model, ((IMAGE,), {}), plan) if plan is not None else model(IMAGE)
    functions = [compiled(model, plan=plan)]
    if not with_plan or name in ("residual", "scale"):
        functions.append(jetvit.optimize(model, IMAGE, plan=plan))
    for function in functions:
        for _ in range(2):
            assert_close(function(IMAGE), expected)
    assert torch.equal(IMAGE, before)
