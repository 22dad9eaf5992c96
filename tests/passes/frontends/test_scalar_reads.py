"""Models whose code reads numbers off tensors: what is the same for every image is taken, the rest is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import jetvit
from jetvit.passes.frontends.scalar_reads import read_values
from jetvit.patterns import CaptureError
from tests.zoo.case import images, randomize
from tests.zoo.handwritten import DIM, HEAD_DIM, PATCH, Attention, TinyViT, sdpa

SIZE = (32, 48)


class PositionAttention(Attention):
    """CroCo's and DUSt3R's: rotary tables as long as the largest position, which is read off a tensor."""

    def __init__(self) -> None:
        super().__init__(sdpa)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        length = int(positions.max()) + 1
        frequencies = 1.0 / 100 ** (torch.arange(0, HEAD_DIM // 2, 2) / (HEAD_DIM // 2))
        angles = torch.outer(torch.arange(length).float(), frequencies).repeat(1, 2)
        parts = []
        for axis, part in enumerate(x.chunk(2, dim=-1)):
            cos, sin = (F.embedding(positions[:, axis], table) for table in (angles.cos(), angles.sin()))
            first, second = part.chunk(2, dim=-1)
            parts.append(part * cos + torch.cat([-second, first], dim=-1) * sin)
        return torch.cat(parts, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(x)
        rows, columns = (size // PATCH for size in SIZE)
        positions = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        out = F.scaled_dot_product_attention(self.rotate(q, positions), self.rotate(k, positions), v)
        return self.proj(out.transpose(1, 2).reshape(x.shape))


class Reading(TinyViT):
    """A small ViT that calls `read` on the image before it starts; what comes back multiplies the image."""

    def __init__(self, read: Callable[[nn.Module, Tensor], float]) -> None:
        super().__init__(partial(Attention, sdpa))
        self.read = read
        self.register_buffer("probability", torch.ones(2))
        self.register_buffer("sizes", torch.tensor([2, 3]))

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image * self.read(self, image))


def product_of_sizes(model: nn.Module, image: Tensor) -> float:
    return int((torch.tensor(image.shape[-2:]) / PATCH).prod()) / 10


def branch_on_a_buffer(model: nn.Module, image: Tensor) -> float:
    return 2.0 if model.probability[0] > 0.5 else 1.0


def list_of_a_buffer(model: nn.Module, image: Tensor) -> float:
    height, width = model.sizes.tolist()
    return sum(range(height)) / width


def constants_between_images(model: nn.Module, image: Tensor) -> float:
    of_image = [image + number for number in range(50)]
    del of_image  # the next tensors may take their places in memory
    constants = [torch.tensor(2) for _ in range(50)]
    return sum(int(each) for each in constants) / 100


def unless_exported(model: nn.Module, image: Tensor) -> float:
    """As transformers reads its masks, and a number off a buffer in every run."""
    if not torch.compiler.is_compiling() and not torch.compiler.is_exporting() and image.mean() > 1e9:
        return 0.5
    return int(model.sizes[0]) / 2


def member(model: nn.Module, image: Tensor) -> float:
    return 2.0 if 3 in torch.arange(4) else 1.0


def mean_of_the_image(model: nn.Module, image: Tensor) -> float:
    return 1.0 if image.mean() > 1e9 else 0.5


def copy_of_the_image(model: nn.Module, image: Tensor) -> float:
    table = torch.zeros(2)
    table[1:].copy_(image.sum())
    return 1.0 if table[1].item() > 1e9 else 0.5


def row_of_the_image(model: nn.Module, image: Tensor) -> float:
    return 1.0 if image[0, 0].abs().amax(dim=-1).tolist()[0] > 1e9 else 0.5


def size_of_a_selection(model: nn.Module, image: Tensor) -> float:
    return 1.0 if len(image[image > 0]) > 10 else 0.5


def slice_by_the_image(model: nn.Module, image: Tensor) -> float:
    return float(image[..., : (image.amax().long() % 2 + 3)].shape[-1])


def slice_by_a_buffer(model: nn.Module, image: Tensor) -> float:
    return float(image[..., : model.sizes[0]].shape[-1])


def image(seed: int = 0) -> Tensor:
    return images(2, 3, *SIZE, seed=seed)


def check(model: nn.Module, sites: int = 2) -> None:
    optimized = jetvit.optimize(model, image())
    assert len(jetvit.find_attention(model, image())) == sites
    with torch.no_grad():
        torch.testing.assert_close(optimized(image(1)), model(image(1)))


def test_tables_as_long_as_the_largest_position() -> None:
    check(randomize(TinyViT(PositionAttention, before=0)))


@pytest.mark.parametrize("read", [product_of_sizes, member])
def test_numbers_off_constants(read: Callable[[nn.Module, Tensor], float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "jetvit"):
        check(randomize(Reading(read)))
    assert not [record for record in caplog.records if record.name.startswith("jetvit")]


@pytest.mark.parametrize("read", [branch_on_a_buffer, list_of_a_buffer])
def test_numbers_off_buffers_are_told(
    read: Callable[[nn.Module, Tensor], float], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    model = randomize(Reading(read))
    with caplog.at_level(logging.WARNING, "jetvit"):
        check(model)
    line = f"{read.__code__.co_filename}:{read.__code__.co_firstlineno + 1} in {read.__name__}"
    assert f"what the model reads off its parameters or buffers stays as it is now: {line}" in caplog.text
    assert "def forward" not in capsys.readouterr().err


def test_a_constant_that_takes_the_place_of_the_image_in_memory_is_no_input() -> None:
    assert len(read_values(Reading(constants_between_images), (image(),), {})) == 50


def test_reads_that_an_export_does_not_make_are_not_told() -> None:
    check(randomize(Reading(unless_exported)))


def test_sizes_that_depend_on_values_are_refused_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError, match=r"(?s)looks at a size that depends on the values.*in size_of_a_selection"):
        jetvit.optimize(randomize(Reading(size_of_a_selection)), image())
    assert "def forward" not in capsys.readouterr().err


@pytest.mark.parametrize("read", [mean_of_the_image, copy_of_the_image, row_of_the_image, slice_by_the_image])
def test_numbers_off_the_image_are_refused_by_line(read: Callable[[nn.Module, Tensor], float]) -> None:
    with pytest.raises(CaptureError, match="the model reads a value off what it computes from its input") as caught:
        jetvit.optimize(randomize(Reading(read)), image())
    assert f"in {read.__name__}" in str(caught.value)


def test_a_bound_of_a_slice_that_is_a_tensor_is_refused_by_line() -> None:
    with pytest.raises(CaptureError, match=r"(?s)where it takes a number.*in slice_by_a_buffer.*int\(tensor\)"):
        jetvit.optimize(randomize(Reading(slice_by_a_buffer)), image())


def test_open_sizes_are_refused() -> None:
    sizes = ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    with pytest.raises(CaptureError, match="sizes are to stay open") as caught:
        jetvit.optimize(randomize(Reading(branch_on_a_buffer)), image(), dynamic_shapes=sizes)
    assert "in branch_on_a_buffer" in str(caught.value)


def test_the_model_holds_what_it_held() -> None:
    """Running the model once leaves no trace either."""

    class Counting(Reading):
        calls = 0

        def forward(self, image: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(image)

    model = randomize(Counting(branch_on_a_buffer))
    jetvit.find_attention(model, image())
    assert model.calls == 0


def test_another_failure_keeps_its_words() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no such thing")

    with pytest.raises(CaptureError, match="does not run on these inputs") as caught:
        jetvit.optimize(Broken(), torch.zeros(1, DIM))
    assert "no such thing" in str(caught.value)
