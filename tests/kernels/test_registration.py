"""The operators on every road of PyTorch: autograd, export, `.pt2`, AOTAutograd, Inductor, AOTInductor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from jetvit.kernels import full_attention, linear_attention, window_attention
from jetvit.kernels.full_attention.reference import full_attention_reference
from jetvit.kernels.linear_attention.reference import linear_attention_reference
from jetvit.kernels.window_attention.reference import window_attention_reference
from tests.kernels.naive import ABSENT, make_rope
from tests.kernels.test_linear_attention import make_weights

LINEAR, WINDOW = torch.ops.jetvit.linear_attention.default, torch.ops.jetvit.window_attention.default
FULL = torch.ops.jetvit.full_attention.default
HEADS, DIM, HIDDEN = 3, 8, 7


class Blocks(torch.nn.Module):
    """All three on an image [batch, height, width, channel], with a prefix token and RoPE tables."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = torch.nn.Linear(11, 3 * HEADS * DIM)
        # Each under a name of its own: Dynamo of torch 2.11 cannot unpack a ParameterList into arguments.
        for name, weight in zip(("w1", "b1", "w2", "b2"), make_weights(HEADS * DIM, 3, HIDDEN), strict=True):
            self.register_parameter(name, torch.nn.Parameter(weight))
        self.register_buffer("absent", ABSENT)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[1:3]
        tokens = torch.cat([image.mean((1, 2))[:, None], image.flatten(1, 2)], dim=1)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, HEADS, DIM)).unbind(2)
        angles = [
            torch.arange(size, device=image.device)[:, None] * torch.tensor([0.5, 0.1]) for size in (height, width)
        ]
        rope = [torch.stack([angle.cos(), angle.sin()], dim=1) for angle in angles]
        out = linear_attention(q, k, v, *rope, self.w1, self.b1, self.w2, self.b2, height, width, 1, 3, 1e-6, "relu")
        out = full_attention(out, k, v, *rope, height, width, 1, DIM**-0.5)
        return window_attention(out, k, v, self.absent, self.absent, height, width, 1, 4, 3, DIM**-0.5)


@pytest.fixture
def blocks() -> Blocks:
    torch.compiler.reset()
    return Blocks().eval().requires_grad_(False)


def image(batch: int, height: int, width: int) -> torch.Tensor:
    torch.manual_seed(batch)
    return torch.randn(batch, height, width, 11)


def operators(graph: torch.fx.Graph) -> list[object]:
    return [node.target for node in graph.nodes if str(node.target).startswith("jetvit")]


DYNAMIC = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC},)


def test_export_keeps_each_operator_one_node_for_every_size(blocks: Blocks, tmp_path: Path) -> None:
    program = torch.export.export(blocks, (image(5, 9, 13),), dynamic_shapes=DYNAMIC)
    torch.export.save(program, tmp_path / "blocks.pt2")
    loaded = torch.export.load(tmp_path / "blocks.pt2")
    for each in (program, program.run_decompositions(), loaded):
        assert operators(each.graph) == [LINEAR, FULL, WINDOW]
        for x in (image(2, 3, 4), image(4, 10, 6)):
            torch.testing.assert_close(each.module()(x), blocks(x), rtol=0, atol=1e-6)


def test_pre_dispatch_trace_keeps_each_operator_one_node(blocks: Blocks) -> None:
    x = image(2, 5, 6)
    graph = make_fx(blocks, pre_dispatch=True)(x)
    assert operators(graph.graph) == [LINEAR, FULL, WINDOW]
    torch.testing.assert_close(graph(x), blocks(x), rtol=0, atol=0)


def test_one_dynamic_graph_serves_all_sizes(blocks: Blocks) -> None:
    """The traced references put no guard on the sizes but that an axis has more than one window."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(blocks, backend=counter, dynamic=True, fullgraph=True)
    for size in ((5, 9, 13), (2, 8, 6), (3, 10, 4), (6, 31, 20)):
        x = image(*size)
        torch.testing.assert_close(compiled(x), blocks(x), rtol=0, atol=5e-6)
    assert counter.frame_count == 1


# Inductor compiles the operators in the quick tests of the backend too; the guards are those of the test above.
@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_inductor_compiles_once(blocks: Blocks, dynamic: bool) -> None:
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(blocks, backend=counter, dynamic=dynamic, fullgraph=True)
    # A graph from the cache comes without the guards that its lowering would have put on the sizes.
    with torch._inductor.config.patch(force_disable_caches=dynamic):
        for x in [image(5, 9, 13), image(2, 8, 6)][: 1 + dynamic]:
            out = compiled(x)
            assert out.is_contiguous()
            torch.testing.assert_close(out, blocks(x), rtol=0, atol=5e-6)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_aot_inductor_serves_all_sizes(blocks: Blocks, tmp_path: Path) -> None:
    program = torch.export.export(blocks, (image(5, 9, 13),), dynamic_shapes=DYNAMIC)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "blocks.pt2"))
    loaded = torch._inductor.aoti_load_package(path)
    for x in (image(5, 9, 13), image(2, 8, 6)):
        torch.testing.assert_close(loaded(x), blocks(x), rtol=0, atol=5e-6)


def linear_arguments(dtype: torch.dtype = torch.float64, size: int = 3) -> tuple[object, ...]:
    torch.manual_seed(0)
    tensors = [*torch.randn(2, 2 + 6 + 1, 3, 2, 4, dtype=dtype).unbind(2), *(x.to(dtype) for x in make_rope(2, 3, 4))]
    weights = [x.to(dtype) for x in make_weights(8, size, 2)] if size else [ABSENT.to(dtype)] * 4
    return *tensors, *weights, 2, 3, 2, size, 1e-2, "relu"


def window_arguments(dtype: torch.dtype = torch.float64) -> tuple[object, ...]:
    torch.manual_seed(0)
    tensors = [*torch.randn(2, 2 + 15 + 1, 3, 2, 4, dtype=dtype).unbind(2), *(x.to(dtype) for x in make_rope(3, 5, 4))]
    return *tensors, 3, 5, 2, 2, 2, 0.4


def full_arguments(dtype: torch.dtype = torch.float64) -> tuple[object, ...]:
    return *window_arguments(dtype)[:8], 0.4


def static_kernel(arguments: tuple[object, ...]) -> tuple[object, ...]:
    return *arguments[:5], *[ABSENT.double()] * 3, *arguments[8:]


CASES = [
    pytest.param(LINEAR, linear_arguments(), id="linear"),
    pytest.param(LINEAR, linear_arguments(size=0), id="linear without convolution", marks=pytest.mark.slow),
    pytest.param(LINEAR, static_kernel(linear_arguments()), id="linear with a static kernel", marks=pytest.mark.slow),
    pytest.param(WINDOW, window_arguments(), id="window"),
    pytest.param(FULL, full_arguments(), id="full"),
]


def with_gradients(arguments: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(
        x.detach().clone().requires_grad_(x.numel() > 0) if isinstance(x, torch.Tensor) else x for x in arguments
    )


@pytest.mark.parametrize(("op", "arguments"), CASES)
def test_opcheck(op: torch._ops.OpOverload, arguments: tuple[object, ...]) -> None:
    torch.library.opcheck(op, with_gradients(arguments))


@pytest.mark.parametrize(("op", "arguments"), CASES)
def test_gradients_are_right(op: torch._ops.OpOverload, arguments: tuple[object, ...]) -> None:
    assert torch.autograd.gradcheck(op, with_gradients(arguments), fast_mode=True)


@pytest.mark.parametrize(
    ("op", "reference", "arguments"),
    [
        (LINEAR, linear_attention_reference, linear_arguments(torch.float32)),
        (WINDOW, window_attention_reference, window_arguments(torch.float32)),
        (FULL, full_attention_reference, full_arguments(torch.float32)),
    ],
)
def test_only_what_wants_a_gradient_gets_one(op, reference, arguments) -> None:
    ours, theirs = with_gradients(arguments), with_gradients(arguments)
    for call, x in ((op, ours), (reference, theirs)):
        x[1].requires_grad_(False)
        call(*x).square().sum().backward()
    assert ours[1].grad is None
    torch.testing.assert_close([ours[0].grad, ours[2].grad], [theirs[0].grad, theirs[2].grad], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("op", "reference", "arguments"),
    [
        (LINEAR, linear_attention_reference, linear_arguments(torch.float64)),
        (WINDOW, window_attention_reference, window_arguments(torch.float64)),
        (FULL, full_attention_reference, full_arguments(torch.float64)),
    ],
)
def test_gradients_of_gradients(op, reference, arguments) -> None:
    """As a gradient penalty takes them, q and k being one tensor."""
    second = []
    for call in (op, reference):
        q, _, *others = with_gradients(arguments)
        with sdpa_kernel(SDPBackend.MATH):  # of the backends the one that can be differentiated twice
            (first,) = torch.autograd.grad(call(q, q, *others).square().sum() + (q**3).sum(), q, create_graph=True)
            second.append(torch.autograd.grad(first.square().sum(), [q, others[0]]))
    torch.testing.assert_close(second[0], second[1], rtol=1e-9, atol=1e-9)


def test_activation_checkpointing() -> None:
    arguments = window_arguments(torch.float32)
    ours, theirs = with_gradients(arguments), with_gradients(arguments)
    checkpoint(WINDOW, *ours, use_reentrant=False).square().sum().backward()
    WINDOW(*theirs).square().sum().backward()
    assert torch.equal(ours[0].grad, theirs[0].grad)


def test_compiled_training_step_is_the_eager_one(blocks: Blocks) -> None:
    blocks.requires_grad_(True)
    gradients = []
    for step in (blocks, torch.compile(blocks, backend="aot_eager", fullgraph=True)):
        blocks.zero_grad()
        step(image(2, 5, 6)).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in blocks.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        (LINEAR, linear_arguments(torch.float32)),
        (WINDOW, window_arguments(torch.float32)),
        (FULL, full_arguments(torch.float32)),
    ],
)
def test_autocast_changes_nothing(op: torch._ops.OpOverload, arguments: tuple[object, ...]) -> None:
    plain, cast = with_gradients(arguments), with_gradients(arguments)
    out = op(*plain)
    out.sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = op(*cast)
        under_autocast.sum().backward()
    assert torch.equal(under_autocast, out)
    assert torch.equal(cast[0].grad, plain[0].grad)


def test_wrong_arguments_are_refused_while_tracing() -> None:
    class Wrong(torch.nn.Module):
        def forward(self, q: torch.Tensor) -> torch.Tensor:
            return window_attention(q, q, q, q.new_empty(0), q.new_empty(0), 2, 2, 0, 0, 2, 0.5)

    with pytest.raises(ValueError, match="window_h must be at least 1, got 0"):
        torch.export.export(Wrong(), (torch.randn(1, 4, 1, 4),))


def test_import_needs_no_triton_and_does_not_complain() -> None:
    code = (
        "import sys; sys.modules['triton'] = None; import torch, jetvit.kernels;"
        "assert torch.ops.jetvit.linear_attention.default and torch.ops.jetvit.window_attention.default;"
        "assert torch.ops.jetvit.full_attention.default"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "triton" not in done.stderr.lower()
