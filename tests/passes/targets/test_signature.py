"""The signature of a file: what it says of a program, that it is data, and how calls are checked against it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from jetvit.passes.targets.signature import Signature
from jetvit.passes.targets.signature_inputs import ConstantInput, OpenAxis, TensorInput
from jetvit.patterns.errors import InputError

IMAGE = torch.arange(2.0 * 3 * 16 * 24).reshape(2, 3, 16, 24)


class Model(nn.Module):
    def forward(self, image: Tensor, more: dict[str, Any], scale: float = 2.0, *, mask: Tensor) -> dict[str, Any]:
        return {"sum": image + more["bias"], "rest": (mask * scale, [image * 2])}


def program_of(open_sizes: bool = True) -> torch.export.ExportedProgram:
    height, width = Dim("height", min=8, max=64), Dim("width", max=100)
    image = {0: Dim.DYNAMIC, 2: height, 3: 8 * width} if open_sizes else None
    mask = {0: Dim.DYNAMIC, 1: height} if open_sizes else None
    shapes = {"image": image, "more": {"bias": None}, "scale": None, "mask": mask}
    args = (IMAGE, {"bias": torch.zeros(1)}, 2.0)
    return torch.export.export(Model(), args, {"mask": torch.zeros(5, 16)}, dynamic_shapes=shapes)


@pytest.fixture(scope="module")
def opened() -> Signature:
    return Signature.of(program_of())


def test_what_a_program_says(opened: Signature) -> None:
    image, bias, scale, mask = opened.inputs
    assert isinstance(image, TensorInput)
    assert (image.name, image.dtype, image.device, image.example) == ("image", "float32", "cpu", (2, 3, 16, 24))
    batch, channels, height, width = image.shape
    assert batch == OpenAxis("batch", least=1)
    assert channels == 3
    assert height == OpenAxis("height", least=8, most=64)
    assert isinstance(width, OpenAxis)
    assert (width.factor, width.most) == (8, 800)
    assert isinstance(mask, TensorInput)
    assert mask.shape == (OpenAxis("mask_batch"), OpenAxis("height", least=8, most=64))
    assert bias == TensorInput("more_bias", "float32", (1,), "cpu", (1,))
    assert scale == ConstantInput("scale", 2.0)
    assert [name for name, _ in opened.args] == ["image", "more", "scale"]
    assert [name for name, _ in opened.kwargs] == ["mask"]
    assert opened.build(["a", "b", "c"]) == {"sum": "a", "rest": ("b", ["c"])}
    assert str(opened).startswith("image: float32 [batch, 3, height, 8·width], more_bias: float32 [1]")


def test_it_is_data(opened: Signature) -> None:
    again = Signature.from_json(opened.to_json())
    assert again == opened
    assert again.build([1, 2, 3]) == opened.build([1, 2, 3])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"version": 1}', "cannot be read"),
        ('{"version": 2}', "has version 2"),
    ],
)
def test_what_is_no_signature(text: str, what: str) -> None:
    with pytest.raises(InputError, match=what) as refusal:
        Signature.from_json(text)
    assert refusal.value.do


@pytest.mark.parametrize(
    "change",
    [
        *({"dtype": "nn"}, {"none": 1}, {"kind": "ConstantInput"}),
        *({"shape": [{"size": 1}]}, {"shape": [{"symbol": "batch", "factor": 0}]}, {"shape": [-1]}, {"shape": ["2"]}),
    ],
)
def test_an_input_that_is_none(change: dict[str, Any], opened: Signature) -> None:
    data = json.loads(opened.to_json())
    data["inputs"][0] |= change
    with pytest.raises(InputError, match="cannot be read"):
        Signature.from_json(json.dumps(data))


def call(**changed: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = {"image": IMAGE, "more": {"bias": torch.zeros(1)}, "mask": torch.zeros(5, 16)} | changed
    return (), {name: value for name, value in given.items() if value is not None}


def test_calls_that_fit(opened: Signature) -> None:
    mask, more = torch.zeros(5, 16), {"bias": torch.zeros(1)}
    for args, kwargs in [
        ((IMAGE, more, 2.0), {"mask": mask}),
        ((IMAGE, more), {"mask": mask}),
        ((IMAGE,), {"mask": mask, "more": more}),
        call(image=torch.zeros(1, 3, 64, 8), mask=torch.zeros(1, 64), scale=2.0),
    ]:
        bound = opened.bind("m.pt2", args, kwargs)
        assert len(bound.args) == 3
        assert list(bound.kwargs) == ["mask"]
        assert len(bound.tensors) == 3
    args, kwargs = opened.examples()
    opened.bind("m.pt2", args, kwargs)


@pytest.mark.parametrize(
    ("changed", "what", "why"),
    [
        ({"image": None}, "m.pt2 needs image", "it takes image, more, scale, mask"),
        ({"images": IMAGE}, "m.pt2 has no input 'images'", "it takes image, more, scale, mask"),
        ({"scale": 3.0}, "m.pt2 does not take scale=3.0", "it was written with scale=2.0"),
        ({"image": IMAGE.numpy()}, "m.pt2 does not take image as ndarray", "every input is a torch.Tensor"),
        ({"image": IMAGE.double()}, "m.pt2 does not take image in float64", "it was written for float32"),
        ({"image": IMAGE.to("meta")}, "m.pt2 does not take image on meta", "it runs on cpu"),
        ({"image": IMAGE[0]}, "m.pt2 does not take image of shape 3×16×24", "it has 3 axes"),
        ({"image": IMAGE[:, :2]}, "m.pt2 does not take image of shape 2×2×16×24", "its channels (axis 1) must be 3"),
        ({"image": torch.zeros(2, 3, 4, 24)}, "2×3×4×24", "its height (axis 2) must be at least 8"),
        ({"image": torch.zeros(2, 3, 68, 24)}, "2×3×68×24", "its height (axis 2) must be at most 64"),
        ({"image": torch.zeros(2, 3, 16, 25)}, "2×3×16×25", "its width (axis 3) must be a multiple of 8"),
        ({"mask": torch.zeros(5, 20)}, "mask of shape 5×20", "its axis 1 must be 16, to fit the height (axis 2) of im"),
        (
            {"image": torch.zeros(2, 4, 7, 24)},
            "2×4×7×24",
            "its channels (axis 1) must be 3, and its height (axis 2) must be at least 8",
        ),
        ({"more": {}}, "does not take this more", "it must be a dict with the keys bias"),
        ({"more": [IMAGE]}, "does not take this more", "it must be a dict with the keys bias"),
    ],
)
def test_calls_that_do_not_fit(changed: dict[str, Any], what: str, why: str, opened: Signature) -> None:
    args, kwargs = call(**changed)
    with pytest.raises(InputError) as refusal:
        opened.bind("m.pt2", args, kwargs)
    assert what in refusal.value.what
    assert refusal.value.why.startswith(why)


@pytest.mark.parametrize(
    ("args", "what"),
    [((IMAGE, {}, 2.0, IMAGE), "was given 4 inputs by position"), ((IMAGE,), "was given image twice")],
)
def test_inputs_by_position_that_do_not_fit(args: tuple[Any, ...], what: str, opened: Signature) -> None:
    with pytest.raises(InputError, match=what):
        opened.bind("m.pt2", args, call()[1])


def test_a_fixed_size_says_how_to_open_it() -> None:
    signature = Signature.of(program_of(open_sizes=False))
    args, kwargs = call(image=torch.zeros(2, 3, 20, 24))
    with pytest.raises(InputError, match=r"its height \(axis 2\) must be 16") as refusal:
        signature.bind("m.pt2", args, kwargs)
    assert "--dynamic" in refusal.value.do


def test_a_size_that_must_be_a_multiple() -> None:
    class Patches(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            torch._check(image.shape[2] % 4 == 0)
            return image.mean((1, 3))

    program = torch.export.export(Patches(), (IMAGE,), dynamic_shapes=({2: Dim.DYNAMIC},))
    signature = Signature.from_json(Signature.of(program).to_json())
    signature.bind("m.pt2", (torch.zeros(2, 3, 20, 24),), {})
    with pytest.raises(InputError, match=r"its height \(axis 2\) must be a multiple of 4"):
        signature.bind("m.pt2", (torch.zeros(2, 3, 18, 24),), {})


def test_a_number_that_the_graph_computes_with() -> None:
    class Scaled(nn.Module):
        def forward(self, image: Tensor, count: int) -> Tensor:
            return image * count

    program = torch.export.export(Scaled(), (IMAGE, 3), dynamic_shapes=(None, Dim.DYNAMIC))
    signature = Signature.from_json(Signature.of(program).to_json())
    assert signature.bind("m.pt2", (IMAGE, 5), {}).args[1] == 5


def test_the_only_input_needs_no_name() -> None:
    class Named(nn.Module):
        def forward(self, *, image: Tensor) -> Tensor:
            return image * 2

    signature = Signature.of(torch.export.export(Named(), (), {"image": IMAGE}))
    assert signature.bind("m.pt2", (IMAGE,), {}).kwargs["image"] is IMAGE
    assert signature.bind("m.pt2", (), {"image": IMAGE}).kwargs["image"] is IMAGE
