"""Both ways in lead to one dialect, with shapes, names and regions, and say why where they do not."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from jetvit.passes.frontends.capture import capture, capture_dynamo, export_model
from jetvit.passes.graph.region_interpreter import ambient_autocast
from jetvit.passes.graph.rewritable import DynamoGraph
from jetvit.patterns import CaptureError
from tests.passes.models import assert_close, aten, compiled, count, exported
from tests.zoo import CASES
from tests.zoo.case import REPRS, images
from tests.zoo.handwritten import SIZE

IMAGE = images(2, 3, *SIZE)


def by_dynamo(function: Any, *inputs: Tensor, **options: Any) -> list[DynamoGraph]:
    graphs = []

    def backend(gm: torch.fx.GraphModule, examples: list[Any]) -> torch.fx.GraphModule:
        graphs.append(capture_dynamo(gm, examples, **options))
        return graphs[-1].module

    torch.compile(function, backend=backend)(*inputs)
    return graphs


def test_a_program_is_taken_as_it_is() -> None:
    _, _, program = exported("sdpa")
    assert export_model(program) is program


def test_what_cannot_be_captured_says_why() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(
        CaptureError, match=r"reads a value(.|\n)*where: .*test_capture.py:\d+ in forward(.|\n)*splits the model"
    ):
        capture(Branches(), (torch.ones(3),))
    with pytest.raises(CaptureError, match=r"what torch\.compile returned cannot be captured"):
        export_model(torch.compile(torch.nn.Linear(2, 2)), (torch.ones(1, 2),))
    with pytest.raises(CaptureError, match="a dict cannot be captured"):
        capture({}, (torch.ones(3),))
    with pytest.raises(CaptureError, match="does not run on these inputs"):
        capture(CASES["sdpa"].build(), (torch.ones(3),))


def test_inputs_that_do_not_fit_are_refused_without_lines_of_torch(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(CaptureError, match="Linear does not run on these inputs") as refused:
        export_model(nn.Linear(3, 4), (torch.ones(2, 5),))
    assert refused.value.where == ""
    assert "failed while attempting to run meta" not in caplog.text


def test_an_export_that_fails_names_the_line_of_the_model() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables: dict[tuple[int, int], Tensor] = {}

        def forward(self, image: Tensor) -> Tensor:
            size = (image.shape[2], image.shape[3])
            if size not in self.tables:  # a symbol has no hash
                self.tables[size] = torch.zeros(size)
            return image + self.tables[size]

    sizes = ({2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    with pytest.raises(CaptureError, match="Cached could not be captured") as caught:
        capture(Cached(), (torch.ones(1, 3, 8, 12),), dynamic_shapes=sizes)
    assert re.search(r"test_capture\.py:\d+ in forward$", caught.value.where)
    assert "size not in self.tables" in linecache.getline(__file__, int(caught.value.where.split(":")[1].split()[0]))
    assert "hash" in caught.value.why
    assert caught.value.do.startswith("leave dynamic_shapes out")


class After(nn.Module):
    """Does something to an image that an export cannot follow."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, image: Tensor) -> Any:
        return self.function(image * 2)


def written_at_a_list(image: Tensor) -> Tensor:
    """As Udop marks the patches that words are on."""
    rows, columns = zip(*torch.tensor([[0, 1], [1, 0]]), strict=True)
    image[0, 0][rows, columns] = 0
    return image


def stacked_by_torch_tensor(image: Tensor) -> Tensor:
    return torch.tensor([image[0, 0, 0, 0], image[0, 0, 0, 1]])


def through_numpy(image: Tensor) -> Tensor:
    return torch.from_numpy(image.numpy())


def by_address(image: Tensor) -> Tensor:
    return image + image.data_ptr()


class Result:
    def __init__(self, image: Tensor) -> None:
        self.image = image


_LIBRARY = torch.library.Library("test_capture", "DEF")
_LIBRARY.define("shapeless(Tensor x) -> Tensor")
_LIBRARY.impl("shapeless", torch.relu, "CPU")


def by_an_operator(image: Tensor) -> Tensor:
    return torch.ops.test_capture.shapeless(image)


@pytest.mark.parametrize(
    ("function", "why", "do"),
    [
        (written_at_a_list, "values of tensors in a Python list or tuple", "torch.stack"),
        (stacked_by_torch_tensor, "values of tensors in a Python list or tuple", "torch.stack"),
        (through_numpy, "the values of a tensor leave torch there", "torch's operators"),
        (by_address, "the values of a tensor leave torch there", "torch's operators"),
        (by_an_operator, "test_capture.shapeless.default does not say which shape", "torch.library.register_fake"),
        (Result, r"holds a [\w.]*test_capture\.Result, and", "register_dataclass"),
    ],
)
def test_known_causes_are_told_in_plain_words(function: Callable[[Tensor], Any], why: str, do: str) -> None:
    with pytest.raises(CaptureError, match=r"After could not be captured by torch\.export") as caught:
        capture(After(function), (torch.ones(1, 3, 8, 8),))
    assert re.search(why, caught.value.why)
    assert do in caught.value.do
    if function is not Result:
        assert re.search(rf"test_capture\.py:\d+ in {function.__name__}$", caught.value.where)
    assert not REPRS.search(str(caught.value))


@pytest.mark.parametrize(
    "function",
    [lambda x: x.to_sparse(), lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), lambda x: x.to("meta")],
    ids=["sparse", "quantised", "meta"],
)
def test_results_that_cannot_be_compared_are_captured(function: Callable[[Tensor], Tensor]) -> None:
    image = torch.ones(1, 3, 8, 8)
    try:
        torch.export.export(After(function), (image,), strict=False)
    except RuntimeError:  # torch 2.11: "quantized nyi in meta tensors"
        pytest.skip("this torch has no meta kernel for quantize_per_tensor: pytorch/pytorch#96435")
    capture(After(function), (image,))


def test_a_program_of_constants_without_values_is_refused() -> None:
    gradient = torch.func.grad(lambda x: (x * x).sum())
    with pytest.raises(CaptureError, match=r"computes no values|could not be captured by torch\.export"):
        capture(After(gradient), (torch.ones(1, 3, 8, 8),))


def test_a_model_that_does_not_run_is_told_from_one_that_cannot_be_captured() -> None:
    class Checked(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            if image.shape[1] != 3:
                raise ValueError("three channels are needed")
            return image

    with pytest.raises(CaptureError, match=r"Checked does not run on these inputs\n *why: three channels") as caught:
        capture(Checked(), (torch.ones(1, 4, 8, 8),))
    assert re.search(r"test_capture\.py:\d+ in forward$", caught.value.where)
    assert "torch.compile" not in caught.value.do
    with pytest.raises(CaptureError, match="does not run on these inputs") as caught:
        capture(Checked(), (), {"pixels": torch.ones(1, 3, 8, 8)})
    assert "pixels" in caught.value.why


@pytest.mark.parametrize("name", ["sdpa", "scale_on_product", "softmax_outside_autocast"])
def test_the_two_roads_give_the_same_operators(name: str) -> None:
    model, (args, _), program = exported(name)
    (graph,) = by_dynamo(model, *args)
    assert graph.ambient_autocast == {}
    for target in (
        aten.linear.default,
        aten.scaled_dot_product_attention.default,
        aten.softmax.int,
        aten.matmul.default,
    ):
        assert count(graph.module, target) == count(program.graph_module, target)
    calls = [node for node in graph.module.graph.nodes if node.target is aten.linear.default]
    assert all(node.meta["val"].shape for node in calls)
    assert all(node.meta["nn_module_stack"] and node.meta["stack_trace"] for node in calls)


def test_parameters_have_their_names_on_the_dynamo_road() -> None:
    model, (args, _), _ = exported("rope_half")
    (graph,) = by_dynamo(model, *args)
    assert set(graph.values()) == {*dict(model.named_parameters()), *dict(model.named_buffers())}
    assert all(graph.values()[name] is value for name, value in model.named_parameters())


def test_an_image_is_no_parameter() -> None:
    """A free tensor and an attribute that is no buffer belong to the caller."""
    model = CASES["sdpa"].build()
    table = torch.ones(1)
    (graph,) = by_dynamo(lambda image: model(image * table), IMAGE, freeze=True)
    free = [node for node in graph.module.graph.nodes if node.op == "placeholder" and node not in graph.tensor_names]
    assert sorted(node.meta["val"].numel() for node in free) == [1, IMAGE.numel()]


def test_symbols_stay_symbols() -> None:
    image = IMAGE.clone()
    for dim in (0, 2, 3):
        torch._dynamo.mark_dynamic(image, dim)
    (graph,) = by_dynamo(CASES["sdpa"].build(), image)
    value = next(
        node.meta["val"] for node in graph.module.graph.nodes if getattr(node.meta.get("val"), "ndim", 0) == 4
        and node.op == "placeholder" and node not in graph.tensor_names
    )  # fmt: skip
    assert [isinstance(size, torch.SymInt) for size in value.shape] == [True, False, True, True]


def test_an_open_region_around_the_call() -> None:
    model = CASES["scale_on_product"].build()
    assert ambient_autocast() == {}
    with torch.autocast("cpu", torch.bfloat16):
        assert ambient_autocast() == {"cpu": torch.bfloat16}
        (graph,) = by_dynamo(model, IMAGE)
        torch._dynamo.reset()
        result, expected = compiled(model)(IMAGE), model(IMAGE)
    assert graph.ambient_autocast == {"cpu": torch.bfloat16}
    assert_close(result, expected, 2e-2)
