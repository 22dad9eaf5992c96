"""Image folders, sizes and drawn pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jetvit.images import IMAGENET_MEAN, IMAGENET_STD, ImageFolder, check_size, parse_size, synthetic_images
from jetvit.patterns.errors import InputError

sides = st.integers(1, 9999)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten PNGs of one grey each, in two folders; their grey is their place in the order of paths, times 20."""
    for i in range(10):
        folder = tmp_path / ("a" if i < 4 else "b")
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (12, 8), (20 * i,) * 3).save(folder / f"{i}.png")
    (tmp_path / "readme.txt").write_text("no image")
    (tmp_path / "._5.png").write_text("what macOS leaves beside a file")
    return tmp_path


def greys(folder: ImageFolder) -> list[int]:
    return [round(folder[i].mean().item() * 255) for i in range(len(folder))]


def test_all_images_in_the_order_of_paths(pictures: Path):
    folder = ImageFolder(pictures, (4, 6), (0, 0, 0), (1, 1, 1))
    assert greys(folder) == [20 * i for i in range(10)]
    batches = list(folder.batches(4))
    assert [batch.shape for batch in batches] == [(4, 3, 4, 6), (4, 3, 4, 6), (2, 3, 4, 6)]
    assert batches[0].dtype == torch.float32


def test_a_limit_is_spread_over_the_folder(pictures: Path):
    assert greys(ImageFolder(pictures, (4, 6), (0, 0, 0), (1, 1, 1), limit=3)) == [0, 60, 120]
    assert len(ImageFolder(pictures, (4, 6), limit=99)) == 10
    with pytest.raises(InputError, match="a limit of 0 images"):
        ImageFolder(pictures, (4, 6), limit=0)


def test_normalised_by_the_given_statistics(pictures: Path):
    image = ImageFolder(pictures, (4, 6))[5]
    expected = (torch.full((3,), 100 / 255) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(image.mean((1, 2)), expected)


def test_grey_alpha_and_palette_become_rgb(tmp_path: Path):
    for mode in ("L", "RGBA", "P", "1", "CMYK"):
        Image.new(mode, (8, 8)).save(tmp_path / f"{mode}.tif")
    folder = ImageFolder(tmp_path, (8, 8))
    assert next(folder.batches(5)).shape == (5, 3, 8, 8)


def test_resize_is_antialiased(tmp_path: Path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    image = ImageFolder(tmp_path, (8, 8), (0, 0, 0), (1, 1, 1))[0]
    assert (image[:, :, 1:-1] - 0.5).abs().max() < 0.05


def test_the_digest_is_of_the_contents_of_the_subset(pictures: Path):
    digest = ImageFolder(pictures, (4, 6), limit=3).digest()
    assert digest == ImageFolder(pictures, (8, 8), limit=3).digest()
    assert digest != ImageFolder(pictures, (4, 6), limit=2).digest()
    Image.new("RGB", (12, 8), (1, 2, 3)).save(pictures / "b" / "4.png")
    assert digest == ImageFolder(pictures, (4, 6), limit=3).digest()
    Image.new("RGB", (12, 8), (1, 2, 3)).save(pictures / "a" / "0.png")
    assert digest != ImageFolder(pictures, (4, 6), limit=3).digest()


def test_no_folder_and_no_image(tmp_path: Path):
    with pytest.raises(InputError, match=r"no image folder .*none"):
        ImageFolder(tmp_path / "none", (4, 4))
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(InputError, match="it is a file"):
        ImageFolder(tmp_path / "readme.txt", (4, 4))
    with pytest.raises(InputError, match=f"no image in {tmp_path}") as refusal:
        ImageFolder(tmp_path, (4, 4))
    assert ".jpg" in refusal.value.why


@pytest.mark.parametrize("keep", [0, 20, 700])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_broken_image_is_named(tmp_path: Path, suffix: str, keep: int):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    file = tmp_path / f"cut{suffix}"
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match=f"cut{suffix} is no image that can be read") as refusal:
        ImageFolder(tmp_path, (4, 4))[0]
    assert refusal.value.do == "remove the file from the folder, or fix it"


def test_sixteen_bits_are_refused(tmp_path: Path):
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "depth.png")
    with pytest.raises(InputError, match=r"depth\.png has more than 8 bits a channel"):
        ImageFolder(tmp_path, (4, 4))[0]


def test_real_photographs(data: Path):
    folder = ImageFolder(data / "camvid" / "train" / "images", (64, 96), limit=5)
    batch = next(folder.batches(5))
    assert batch.shape == (5, 3, 64, 96)
    assert 0.3 < batch.std() < 2


@given(sides, sides)
def test_sizes_round_trip(height: int, width: int):
    assert parse_size(f"{height}x{width}") == (height, width)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_refusal(text: str):
    try:
        size = parse_size(text)
    except InputError:
        return
    assert min(size) > 0


def test_a_single_number_gets_its_square():
    with pytest.raises(InputError, match="write --size 518x518"):
        parse_size("518")


@given(sides, sides, st.integers(1, 64))
def test_the_sizes_that_check_size_names_fit(height: int, width: int, patch: int):
    if height % patch == 0 and width % patch == 0:
        check_size((height, width), patch)
        return
    with pytest.raises(InputError) as refusal:
        check_size((height, width), patch)
    for text in refusal.value.do.removeprefix("use --size ").split(" or "):
        fit = parse_size(text)
        check_size(fit, patch)
        assert all(abs(new - old) < patch for new, old in zip(fit, (height, width), strict=True))


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_drawn_pictures(count: int, height: int, width: int, seed: int):
    images = synthetic_images(count, (height, width), seed)
    assert images.shape == (count, 3, height, width)
    assert images.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 1
    assert torch.equal(images, synthetic_images(count, (height, width), seed))


def test_drawn_pictures_differ():
    first, second = synthetic_images(2, (32, 32), seed=0)
    assert (first - second).abs().mean() > 0.05
    assert (synthetic_images(1, (32, 32), seed=1)[0] - first).abs().mean() > 0.05
