"""The launches of the operators inside a trace for a GPU, as Inductor and AOTInductor take them; it needs no GPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from jetvit.kernels.launch import interpreted, record_launches

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(interpreted(), reason="the interpreter's kernels cannot be traced")

wrapper = torch.ops.higher_order.triton_kernel_wrapper_mutation
HEADS, DIM, EXTRA, WIDTH = 3, 64, 5, 8


def rope(like: Tensor, grid_h: int, grid_w: int) -> list[Tensor]:
    return [like.new_empty(size, 2, DIM // 4, dtype=torch.float32) for size in (grid_h, grid_w)]


def linear(qkv: Tensor, grid_h: int) -> Tensor:
    channels, hidden = HEADS * DIM, 16
    shapes = [(hidden, channels), (hidden,), (channels * 9, hidden), (channels * 9,)]
    weights = [qkv.new_empty(shape) for shape in shapes]
    tables = rope(qkv, grid_h, WIDTH)
    from jetvit.kernels.linear_attention.triton_launch import linear_attention_triton

    return linear_attention_triton(*qkv.unbind(2), *tables, *weights, grid_h, WIDTH, EXTRA, 3, 1e-6, "relu")


def window(qkv: Tensor, grid_h: int) -> Tensor:
    from jetvit.kernels.window_attention.triton_launch import window_attention_triton

    return window_attention_triton(*qkv.unbind(2), *rope(qkv, grid_h, WIDTH), grid_h, WIDTH, EXTRA, 4, 4, 0.125)


def full(qkv: Tensor, grid_h: int) -> Tensor:
    """The rotation alone: which backend SDPA becomes is up to a torch that knows GPUs."""
    from jetvit.kernels.full_attention.triton_launch import rotate

    return rotate(qkv.select(2, 0), *rope(qkv, grid_h, WIDTH), grid_h, WIDTH, EXTRA)


OPERATORS = {"linear": linear, "window": window, "full": full}


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A driver that says which GPU to compile for; torch asks it when it looks which tensors a kernel writes."""
    import triton

    from benchmarks.kernels.target_driver import TargetDriver

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    before = triton.runtime.driver._active
    triton.runtime.driver.set_active(TargetDriver(90))
    yield
    triton.runtime.driver.set_active(before)


def traced(operator: Callable[[Tensor, int], Tensor]) -> GraphModule:
    """The operator's launches on a GPU, traced with an open batch and an open grid height."""

    def on_gpu(image: Tensor) -> Tensor:
        batch, grid_h = image.shape
        qkv = torch.empty(batch, EXTRA + grid_h * WIDTH, 3, HEADS, DIM, dtype=torch.bfloat16, device="cuda")
        return operator(qkv, grid_h)

    return make_fx(on_gpu, tracing_mode="symbolic")(torch.empty(2, 7))


@pytest.mark.parametrize("name", OPERATORS)
def test_no_size_is_fixed(name) -> None:
    """What depends on the image or the batch stays open, down to the grids of the launches."""
    graph = traced(OPERATORS[name])
    for guard in graph.shape_env.guards:
        symbols = sorted(guard.expr.free_symbols, key=str)
        for values in itertools.product((1, 2, 5, 64, 1000), repeat=len(symbols)):
            assert guard.expr.subs(dict(zip(symbols, values, strict=True))), guard
    (out,) = graph.graph.output_node().all_input_nodes
    batch, tokens, *rest = out.meta["val"].shape
    assert not isinstance(batch, int)
    assert not isinstance(tokens, int)
    assert rest == [HEADS, DIM]
    launches = [node for node in graph.graph.nodes if node.target is wrapper]
    assert launches
    for node in launches:
        ((first, *_),) = node.kwargs["grid"]
        assert not isinstance(first, int) or node.kwargs["kwargs"].keys() >= {"w2_ptr"}, node.kwargs["grid"]


@pytest.mark.parametrize("name", OPERATORS)
def test_a_kernel_is_known_to_write_its_results_only(name, hopper) -> None:
    """torch clones every tensor that it thinks a kernel may write: q, k and v must not be among them."""
    from torch._higher_order_ops.triton_kernel_wrap import get_mutated_tensors

    made = {"partials_ptr", "state_ptr", "key_sums_ptr", "hidden_ptr", "taps_ptr", "out_ptr"}
    launches = [node for node in traced(OPERATORS[name]).graph.nodes if node.target is wrapper]
    for node in launches:
        tensors = {
            key: value.meta["val"] if hasattr(value, "meta") else value for key, value in node.kwargs["kwargs"].items()
        }
        written = get_mutated_tensors(node.kwargs["kernel_idx"], node.kwargs["constant_args_idx"], tensors, {})
        assert written
        assert set(written) <= made


def test_windows_compile_few_variants() -> None:
    """Their width is a constant where it divides the grid's; keys that fill no block are loaded by 16 or by 64."""
    from benchmarks.kernels.sm90 import variant_of
    from jetvit.kernels.window_attention.triton_launch import window_attention_triton

    compilations = set()
    for grid in itertools.product((1, 7, 16, 30, 44, 64, 73), (16, 44, 60, 128, 146)):
        tokens = EXTRA + grid[0] * grid[1]
        q, k, v = torch.empty(1, tokens, 3, HEADS, DIM, dtype=torch.bfloat16, device="meta").unbind(2)
        tables = [torch.empty(size, 2, DIM // 4, device="meta") for size in grid]
        with record_launches() as launches:
            window_attention_triton(q, k, v, *tables, *grid, EXTRA, 16, 16, 0.125)
        compilations.add(variant_of(launches[0]))
    assert len(compilations) <= 4


@pytest.mark.parametrize("name", OPERATORS)
def test_no_image_size_compiles_a_kernel_anew(name) -> None:
    """Batch, grid height and sizes of every divisibility make one and the same compilation of each kernel."""
    from benchmarks.kernels.sm90 import variant_of

    compilations = []
    for batch, grid_h in ((1, 1), (1, 2), (2, 7), (3, 16), (16, 64), (1, 1000)):
        with record_launches() as launches:
            qkv = torch.empty(batch, EXTRA + grid_h * WIDTH, 3, HEADS, DIM, dtype=torch.bfloat16, device="meta")
            OPERATORS[name](qkv, grid_h)
        compilations.append([variant_of(launch) for launch in launches])
    assert len(set(map(tuple, compilations))) == 1
