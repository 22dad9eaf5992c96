"""Image folders, sizes and drawn pictures."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jetvit.models.image_files import ImageFiles
from jetvit.models.image_reading import read_image
from jetvit.models.images import IMAGENET_MEAN, IMAGENET_STD, ImageFolder, check_size, parse_size, synthetic_images
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
    with pytest.raises(InputError, match="can be read") as refusal:
        ImageFolder(tmp_path, (4, 4))
    assert refusal.value.why.startswith(f"cut{suffix} (")
    with pytest.raises(InputError, match=f"cut{suffix} is no image that can be read"):
        read_image(file, (4, 4))


@pytest.fixture
def photo() -> Image.Image:
    """Left red, the upper right green: it tells every orientation from every other."""
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[:, :24, 0] = 255
    pixels[:12, 40:, 1] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_exif_orientation_is_honoured(photo: Image.Image, tmp_path: Path, suffix: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = photo
    # What the tag undoes, by the definition of each value.
    undone = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    if how := (undone | {7: "TRANSVERSE", 8: "ROTATE_270"}).get(orientation):
        stored = photo.transpose(Image.Transpose[how])
    lossless = {".webp": {"lossless": True}, ".jpg": {"quality": 95, "subsampling": 0}}
    stored.save(tmp_path / f"turned{suffix}", exif=exif, **lossless.get(suffix, {}))
    photo.save(tmp_path / "upright.png")
    turned, upright = (read_image(tmp_path / name, (20, 32)) for name in (f"turned{suffix}", "upright.png"))
    torch.testing.assert_close(turned, upright, atol=0.1 if suffix == ".jpg" else 1e-3, rtol=0)


def test_damaged_exif_leaves_the_image_as_it_is(photo: Image.Image, tmp_path: Path):
    photo.save(tmp_path / "a.png")
    photo.save(tmp_path / "b.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff", quality=95, subsampling=0)
    images = ImageFolder(tmp_path, (20, 32), (0, 0, 0), (1, 1, 1))
    torch.testing.assert_close(images[0], images[1], atol=0.1, rtol=0)


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm"])
def test_sixteen_bits_are_scaled_by_their_range(tmp_path: Path, name: str):
    pixels = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    if name.endswith(".pgm"):  # Pillow 10.0 reads these and does not write them
        (tmp_path / name).write_bytes(b"P5 8 8 65535\n" + pixels.astype(">u2").tobytes())
    else:
        Image.fromarray(pixels).save(tmp_path / name)
    image = ImageFolder(tmp_path, (8, 8), (0, 0, 0), (1, 1, 1))[0]
    torch.testing.assert_close(image, torch.linspace(0, 1, 64).reshape(8, 8).expand(3, -1, -1), atol=1e-4, rtol=0)


def test_sixteen_bits_a_channel_in_colour(tmp_path: Path):
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = b"\0" + struct.pack(">3H", 65535, 32768, 0) * 2
    header = struct.pack(">2I5B", 2, 2, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 2)) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    image = read_image(tmp_path / "deep.png", (2, 2))
    torch.testing.assert_close(image.mean((1, 2)), torch.tensor([1, 0.5, 0]), atol=0.01, rtol=0)


def test_values_without_a_known_range_are_skipped(pictures: Path, caplog: pytest.LogCaptureFixture):
    Image.fromarray(np.ones((8, 8), np.float32)).save(pictures / "metres.tif")
    assert len(ImageFolder(pictures, (4, 6))) == 10
    assert "skipped 1 image that cannot be read: metres.tif (its mode is F" in caplog.text


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_drawn_on_white_and_said(tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 8, 4))
    if mode == "P":
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 200, 0, 0])
        image.paste(0, (0, 0, 8, 4))
        image.save(tmp_path / "logo.png", transparency=1)
    else:
        image.convert(mode).save(tmp_path / "logo.png")
    Image.new("RGBA", (8, 8), (9, 9, 9, 255)).save(tmp_path / "opaque.png")
    found = ImageFolder(tmp_path, (8, 8), (0, 0, 0), (1, 1, 1))[0]
    assert found[:, :4].max() == 0
    assert found[:, 4:].min() == 1
    assert "1 image with transparency, drawn on white: logo.png" in caplog.text


def test_the_first_frame_of_an_animation_is_read_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black", "red")]
    for name in ("a.gif", "b.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    images = ImageFolder(tmp_path, (4, 4), (0, 0, 0), (1, 1, 1))
    assert [images[i].min().item() for i in range(2)] == [1, 1]
    assert "only the first frame of 2 images is read: a.gif (3 frames), b.webp (3 frames)" in caplog.text


def test_unreadable_images_are_skipped_by_name_or_refused(pictures: Path, caplog: pytest.LogCaptureFixture):
    whole = (pictures / "a" / "0.png").read_bytes()
    (pictures / "a" / "0.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "b" / "5.heic").write_bytes(b"no picture")
    assert greys(ImageFolder(pictures, (4, 6), (0, 0, 0), (1, 1, 1))) == [20 * i for i in range(1, 10)]
    assert "skipped 2 images that cannot be read: a/0.png (" in caplog.text
    assert "b/5.heic (it is in no format that Pillow reads)" in caplog.text
    assert len(ImageFolder(pictures, (4, 6), limit=9)) == 9  # others of the folder take their places
    with pytest.raises(InputError, match="2 images cannot be read") as refusal:
        ImageFiles.find(pictures, strict=True)
    assert "a/0.png (" in refusal.value.why


def test_links_are_followed_but_not_in_a_circle(pictures: Path, tmp_path_factory: pytest.TempPathFactory):
    other = tmp_path_factory.mktemp("other")
    (other / "photos").symlink_to(pictures)
    assert len(ImageFiles.find(other).files) == 10
    (pictures / "b" / "back").symlink_to(other)
    with pytest.raises(InputError, match=r"the folder .* has no end") as refusal:
        ImageFiles.find(other)
    assert "back" in refusal.value.where
    (pictures / "b" / "back").unlink()
    (pictures / "b" / "own.png").symlink_to("own.png")
    with pytest.raises(InputError, match=r"own\.png leads back to itself"):
        ImageFiles.find(pictures)
    (other / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="loop leads back to itself"):
        ImageFiles.find(other / "loop")


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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("-64x96", "a side is -64 pixels"),
        ("64x0", "a side is 0 pixels"),
        ("640000x960000", "it is 6.14e+11 pixels, of which one image takes 7,373 GB"),
        ("12345678x1234567", "pixels, of which one image takes"),
    ],
)
def test_the_reason_why_a_size_is_refused_is_true(text: str, words: str):
    with pytest.raises(InputError) as refusal:
        parse_size(text)
    assert words in refusal.value.why


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
