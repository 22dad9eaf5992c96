"""`dynamic=True`: programs of any batch, height and width, and the model line that stands in the way of one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import jetvit
from jetvit.passes.frontends.capture import export_model
from jetvit.passes.frontends.open_sizes import export_sizes
from jetvit.patterns.errors import CaptureError, InputError

IMAGE = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))


class Patches(nn.Module):
    """A patch embedding, and a function of its result and of the image."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.embed = nn.Conv2d(3, 8, 16, 16)

    def forward(self, image: Tensor, scale: float = 1.0) -> Tensor:
        return self.function(self.embed(image), image) * scale


def of_any_size(patches: Tensor, image: Tensor) -> Tensor:
    return patches.flatten(2).mean(-1)


def height_as_a_number(patches: Tensor, image: Tensor) -> Tensor:
    return patches + int(image.shape[2])  # the line


def a_branch_on_the_width(patches: Tensor, image: Tensor) -> Tensor:
    return patches * 2 if image.shape[3] == 48 else patches  # the line


def a_fixed_grid(patches: Tensor, image: Tensor) -> Tensor:
    rows, columns = (2, 3) if image.numel() == 2 * 3 * 32 * 48 or image.shape[2] == 32 else patches.shape[2:]
    return patches.flatten(2).reshape(-1, 8, rows, columns)


def two_images(patches: Tensor, image: Tensor) -> Tensor:
    return patches * (3 if len(image) == 2 else 4)  # the line


def open_program(function: Callable[[Tensor, Tensor], Tensor], image: Tensor = IMAGE, **kwargs: Any) -> Any:
    return export_sizes(Patches(function), (image,), kwargs, dynamic=True)


def line_of(function: Callable[..., Any]) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if "# the line" in line)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_program_takes_any_batch_height_and_width(batch: int, dtype: torch.dtype) -> None:
    model = Patches(of_any_size).to(dtype)
    program = export_sizes(model, (IMAGE.expand(batch, -1, -1, -1).to(dtype),), {"scale": 2.0}, dynamic=True)
    for shape in ((1, 3, 32, 48), (2, 3, 48, 32), (4, 3, 80, 96)):
        image = torch.randn(shape, dtype=dtype)
        torch.testing.assert_close(program.module()(image, scale=2.0), model(image, 2.0))


def test_images_by_name_and_of_bytes() -> None:
    class Bytes(nn.Module):
        def forward(self, other: int, *, pixels: Tensor) -> Tensor:
            return (pixels / 255 + other).mean((2, 3))

    pixels = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    program = export_sizes(Bytes(), (2,), {"pixels": pixels}, dynamic=True)
    assert program.module()(2, pixels=torch.zeros(5, 3, 8, 9, dtype=torch.uint8)).shape == (5, 3)


@pytest.mark.parametrize(
    ("function", "axes", "condition"),
    [
        (height_as_a_number, "an open height", "`height == 32` alone, which is false for 48×80"),
        (a_branch_on_the_width, "an open width", "`width == 48` alone, which is false for 48×80"),
        (two_images, "an open batch", "`batch == 2` alone, which is false for another batch"),
    ],
)
def test_a_refusal_names_the_axis_and_the_line(function: Any, axes: str, condition: str) -> None:
    with pytest.raises(CaptureError) as caught:
        open_program(function)
    error = caught.value
    assert error.what == f"the model cannot be captured with {axes}"
    assert error.why == f"torch.export followed its code for {condition}"
    assert error.where == f"{__file__}:{line_of(function)} in {function.__name__}"
    assert "leave dynamic=True out" in error.do
    assert f"change that line to work for every {axes.split()[-1]}" in error.do
    assert not re.search(r"mark_dynamic|Dim\.|size\(\)", str(error))


def test_a_grid_that_is_fixed_in_silence() -> None:
    with pytest.raises(CaptureError, match=r"torch\.export followed its code for"):
        open_program(a_fixed_grid)


def test_a_model_of_one_size() -> None:
    with pytest.raises(CaptureError, match="the model takes no other image size") as caught:
        open_program(lambda patches, image: patches.flatten(2) + torch.ones(1, 8, 6))
    assert Path(__file__).name in caught.value.where

    class Vit(Patches):
        def forward(self, image: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
            return self.embed(image).flatten(2) + (0 if interpolate_pos_encoding else torch.ones(1, 8, 6))

    with pytest.raises(CaptureError, match=r"kwargs=\{'interpolate_pos_encoding': True\}"):
        export_sizes(Vit(of_any_size), (IMAGE,), dynamic=True)
    export_sizes(Vit(of_any_size), (IMAGE,), {"interpolate_pos_encoding": True}, dynamic=True)
    with pytest.raises(CaptureError, match="Patches does not run on these inputs"):
        open_program(of_any_size, torch.randn(1, 4, 32, 48))


def test_other_refusals_of_an_export_keep_their_reason() -> None:
    with pytest.raises(CaptureError, match=r"reads a value off what it computes"):
        open_program(lambda patches, image: patches * (2 if patches.sum() > 0 else 3))
    with pytest.raises(CaptureError, match=r"unhashable type(.|\n)*leave dynamic=True out") as caught:
        open_program(lambda patches, image: {image.shape[2]: patches}[image.shape[2]])
    assert Path(__file__).name in caught.value.where


def test_a_model_that_draws_random_numbers_is_not_compared() -> None:
    open_program(lambda patches, image: patches + torch.rand_like(patches))


def test_inputs_other_than_one_batch_of_images_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, image: Tensor, mask: Tensor) -> Tensor:
            return image * mask

    for inputs in ((IMAGE, IMAGE), (IMAGE, torch.ones(48))):
        with pytest.raises(InputError, match=r"one tensor of images(.|\n)*2 tensors(.|\n)*dynamic_shapes="):
            export_sizes(Two(), inputs, dynamic=True)
    with pytest.raises(InputError, match="called with 0 tensors"):
        export_sizes(Patches(of_any_size), dynamic=True)


def test_what_is_no_module_is_refused_as_without_dynamic() -> None:
    with pytest.raises(CaptureError, match="a dict cannot be captured"):
        export_sizes({}, (IMAGE,), dynamic=True)  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match=r"what torch\.compile returned cannot be captured"):
        export_sizes(torch.compile(Patches(of_any_size)), (IMAGE,), dynamic=True)  # type: ignore[arg-type]


def test_a_model_without_values() -> None:
    export_sizes(Patches(of_any_size).to("meta"), (IMAGE.to("meta"),), dynamic=True)


def test_an_exported_program_keeps_its_sizes() -> None:
    fixed = export_model(Patches(of_any_size), (IMAGE,))
    with pytest.raises(CaptureError, match=r"open the batch and height and width of an exported(.|\n)*1×3×32×48"):
        export_sizes(fixed, dynamic=True)
    program = open_program(of_any_size)
    assert export_sizes(program, dynamic=True) is program


@pytest.mark.parametrize("name", ["find_attention", "explain", "optimize", "export"])
def test_both_are_refused(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"path": tmp_path / "never.pt2"} if name == "export" else {}
    with pytest.raises(InputError, match="dynamic=True and dynamic_shapes are both given"):
        getattr(jetvit, name)(Patches(of_any_size), IMAGE, dynamic=True, dynamic_shapes=({0: Dim.DYNAMIC},), **options)
    assert list(tmp_path.iterdir()) == []
