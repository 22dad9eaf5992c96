"""Folders as splits: which image goes where, what its target is, and what is refused."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jetvit.models import datasets
from jetvit.models.datasets import find_split_files, group_of, read_splits
from jetvit.models.images import ImageFolder
from jetvit.patterns.errors import InputError
from jetvit.search.data.splits import Splits
from jetvit.search.tasks.depth import Depth
from jetvit.search.tasks.features import Features
from jetvit.search.tasks.segmentation import Segmentation

SIZE, MEAN, STD = (4, 6), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
LABELS, DEPTHS = Segmentation(3), Depth("depth", 0.1, 10)
FILMS = {"a": 6, "b": 3, "c": 2}


def picture(file: Path, content: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), (content % 256, content // 256, 7)).save(file)


def target(file: Path, numbers: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(numbers).save(file)


def laid_out(folder: Path, kind: str, films: dict[str, int], numbers: Callable[[int], np.ndarray]) -> Path:
    """Films to train on and three pictures of unknown origin to test, every one of another content."""
    names = [f"train/{{}}/{film}_{frame:03}" for film, count in films.items() for frame in range(count)]
    for content, name in enumerate([*names, *(f"val/{{}}/{i:04}" for i in range(3))]):
        picture(folder / f"{name.format('images')}.png", content)
        target(folder / f"{name.format(kind)}.png", numbers(content))
    return folder


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return laid_out(tmp_path, "labels", FILMS, lambda content: np.full((2, 3), content % 3, np.uint8))


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    numbers = np.array([[0, 100, 255]], np.uint8)
    return laid_out(tmp_path, "depths", {"": 5}, lambda content: numbers)


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("0006R0_f00930.png", "0006R0"),
        ("0001TP_006690.png", "0001TP"),
        ("0004.jpg", ""),
        ("frame0004.jpg", "frame"),
        ("DSC12b.jpg", "DSC"),
        ("holiday.jpg", ""),
        ("_7.jpg", ""),
        ("seq_01_003.png", "seq_01"),
        ("films/one/0004.jpg", "films/one"),
        ("films/one_4.jpg", "films/one"),
    ],
)
def test_groups(path: str, group: str):
    assert group_of(Path(path)) == group


def test_labels(scenes: Path):
    splits = read_splits(scenes, LABELS, SIZE, MEAN, STD)
    # Eleven images, a fifth of them is two: the film of two.
    assert splits.train.groups == ["a"] * 6 + ["b"] * 3
    assert splits.select.groups == ["c"] * 2
    assert splits.test.groups == [""] * 3
    for split, folder, first in ((splits.train, "train", 0), (splits.test, "val", 0), (splits.select, "train", 9)):
        images = ImageFolder(scenes / folder / "images", SIZE, MEAN, STD)
        sample = split[1]
        assert torch.equal(sample.image, images[first + 1])
        assert split.keys[1] == hashlib.sha256(images.files[first + 1].read_bytes()).hexdigest()
        assert sample.target is not None
        assert sample.target.dtype == torch.uint8
    assert [int(splits.train[i].target[0, 0]) for i in range(9)] == [content % 3 for content in range(9)]  # type: ignore[index]


def test_groups_that_select_can_be_named(scenes: Path):
    splits = read_splits(scenes, LABELS, SIZE, MEAN, STD, select={"b"})
    assert set(splits.select.groups) == {"b"}
    assert set(splits.train.groups) == {"a", "c"}
    with pytest.raises(InputError, match=r"no group d in .*\n.*the groups are a, b, c"):
        read_splits(scenes, LABELS, SIZE, MEAN, STD, select={"d"})
    with pytest.raises(InputError, match="cannot be divided into"):
        read_splits(scenes, LABELS, SIZE, MEAN, STD, select={"a", "b", "c"})


def test_the_groups_nearest_to_a_fifth_select(tmp_path: Path):
    # Of 20, wanted are 4: 3 + 1, and not the 5 of one film alone.
    laid_out(tmp_path, "labels", {"a": 11, "b": 5, "c": 3, "d": 1}, lambda content: np.zeros((2, 2), np.uint8))
    assert set(read_splits(tmp_path, LABELS, SIZE, MEAN, STD).select.groups) == {"c", "d"}


def test_depths(rooms: Path):
    splits = read_splits(rooms, DEPTHS, SIZE, MEAN, STD, depth_scale=10 / 255)
    assert (len(splits.train), len(splits.select), len(splits.test)) == (4, 1, 3)
    depth = splits.test[0].target
    assert depth is not None
    torch.testing.assert_close(depth, torch.tensor([[0, 1000 / 255, 10]]))
    splits = read_splits(rooms, DEPTHS, SIZE, MEAN, STD, depth_scale=10 / 255, saturated=255)
    torch.testing.assert_close(splits.test[0].target, torch.tensor([[0, 1000 / 255, 0]]))
    for scale in (None, 0):
        with pytest.raises(InputError, match="depths cannot be read"):
            read_splits(rooms, DEPTHS, SIZE, MEAN, STD, depth_scale=scale)


def test_16_bits(tmp_path: Path):
    numbers = np.array([[0, 1500, 65535]], np.uint16)
    laid_out(tmp_path, "depths", {"": 5}, lambda content: numbers)
    laid_out(tmp_path, "labels", {"": 5}, lambda content: numbers)
    splits = read_splits(tmp_path, DEPTHS, SIZE, MEAN, STD, depth_scale=0.001, saturated=65535)
    torch.testing.assert_close(splits.test[0].target, torch.tensor([[0, 1.5, 0]]))
    labels = read_splits(tmp_path, LABELS, SIZE, MEAN, STD).test[0].target
    assert labels is not None
    assert labels.tolist() == [[0, 1500, 65535]]


def test_a_palette_is_read_as_its_numbers(scenes: Path):
    for file in (scenes / "val" / "labels").iterdir():
        image = Image.new("P", (3, 2), 2)
        image.putpalette([9, 9, 9] * 3)
        image.save(file)
    labels = read_splits(scenes, LABELS, SIZE, MEAN, STD).test[0].target
    assert labels is not None
    assert labels.unique().tolist() == [2]


def test_without_labels(scenes: Path):
    splits = read_splits(scenes, Features(), SIZE, MEAN, STD)
    assert splits.train.groups == ["a"] * 6 + ["b"] * 3
    assert splits.test[0].target is None


def test_any_folder_of_images(tmp_path: Path):
    for content in range(30):
        picture(tmp_path / f"{content:03}.png", content)
    splits = read_splits(tmp_path, Features(), SIZE, MEAN, STD)
    assert [len(each) for each in (splits.train, splits.select, splits.test)] == [24, 3, 3]


def test_whole_films_of_any_folder(tmp_path: Path):
    for content in range(30):
        picture(tmp_path / f"film{content // 3}" / f"{content:03}.png", content)
    splits = read_splits(tmp_path, Features(), SIZE, MEAN, STD)
    films = [set(each.groups) for each in (splits.train, splits.select, splits.test)]
    assert [len(each) for each in films] == [8, 1, 1]
    assert len(set.union(*films)) == 10
    splits = read_splits(tmp_path, Features(), SIZE, MEAN, STD, select={"film3", "film4"})
    assert set(splits.select.groups) == {"film3", "film4"}
    assert len(splits.test) == 3


def test_one_film_is_divided_and_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for content in range(10):
        picture(tmp_path / f"IMG_{content}.png", content)
    with caplog.at_level(logging.WARNING):
        splits = read_splits(tmp_path, Features(), SIZE, MEAN, STD)
    assert (len(splits.train), len(splits.select), len(splits.test)) == (8, 1, 1)
    assert "are from the same IMG" in caplog.text


def test_a_limit_moves_no_image_to_another_split(scenes: Path):
    every = read_splits(scenes, LABELS, SIZE, MEAN, STD)
    some = read_splits(scenes, LABELS, SIZE, MEAN, STD, limit=2)
    assert some.train.keys == [every.train.keys[0], every.train.keys[4]]
    assert (len(some.select), len(some.test)) == (2, 2)
    with pytest.raises(InputError, match="a limit of 0 images"):
        read_splits(scenes, LABELS, SIZE, MEAN, STD, limit=0)


names = st.builds(
    lambda folder, film, frame: f"{folder}{film}{frame}",
    st.sampled_from(["", "x/", "y/"]),
    st.sampled_from(["", "p_", "q_", "r"]),
    st.integers(0, 9),
)


@given(st.dictionaries(names, st.integers(0, 300), min_size=1, max_size=14))
@settings(max_examples=40, deadline=None)
def test_splits_share_nothing_and_do_not_depend_on_where_the_folder_is(files: dict[str, int]):
    found: list[Splits | str] = []
    with tempfile.TemporaryDirectory() as temporary:
        for folder in ("here", "somewhere_2/else"):
            for name, content in files.items():
                picture(Path(temporary) / folder / f"{name}.png", content)
            try:
                found.append(read_splits(Path(temporary) / folder, Features(), SIZE, MEAN, STD))
            except InputError as error:
                found.append(error.what)
    one, other = found
    if isinstance(one, str) or isinstance(other, str):
        assert one == other
        # Films are the same in different folders, or there are too few different images.
        assert "share an image" in str(one) or len(set(files.values())) < 3 or len(files) < 3
        return
    assert one.record() == other.record()
    parts = [set(each.keys) for each in (one.train, one.select, one.test)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert sum(len(each) for each in (one.train, one.select, one.test)) == len(files)


def test_samples_are_kept_up_to_a_bound(scenes: Path, monkeypatch: pytest.MonkeyPatch):
    needed = 4 * 3 * SIZE[0] * SIZE[1] + 6
    monkeypatch.setattr(datasets, "CACHE_BYTES", 2 * needed)
    train = read_splits(scenes, LABELS, SIZE, MEAN, STD).train
    first = [train[i].image for i in range(3)]
    assert [train[i].image is first[i] for i in range(3)] == [True, True, False]
    assert torch.equal(train[2].image, first[2])


def refused(folder: Path, task: Segmentation | Depth | Features = LABELS) -> str:
    with pytest.raises(InputError) as caught:
        read_splits(folder, task, SIZE, MEAN, STD, depth_scale=0.1)
    return str(caught.value)


def test_missing_folders(scenes: Path, tmp_path_factory: pytest.TempPathFactory):
    assert "no image folder" in refused(scenes / "nowhere")
    assert "no image folder" in refused(scenes / "nowhere", Features())
    assert "holds no train/images" in refused(tmp_path_factory.mktemp("empty"))
    assert "no depths for the image a_000.png" in refused(scenes, DEPTHS)
    (scenes / "val").rename(scenes / "test")
    assert "val/images" in refused(scenes)


def test_an_image_without_a_target(scenes: Path):
    (scenes / "train" / "labels" / "a_003.png").unlink()
    message = refused(scenes)
    assert "no labels for the image a_003.png" in message
    assert "train/labels/a_003.png" in message


@pytest.mark.parametrize("mode", ["RGB", "F", "1"])
def test_a_target_of_another_kind(scenes: Path, mode: str):
    file = scenes / "val" / "labels" / "0001.png"
    Image.new(mode, (3, 2)).save(file, "TIFF" if mode == "F" else "PNG")
    assert f"its mode is {mode}" in refused(scenes)


def test_targets_of_two_sizes(scenes: Path):
    Image.new("L", (9, 2)).save(scenes / "val" / "labels" / "0001.png")
    message = refused(scenes)
    assert "3×2 pixels" in message
    assert "9×2" in message


def test_a_broken_target(scenes: Path, caplog: pytest.LogCaptureFixture):
    file = scenes / "val" / "labels" / "0001.png"
    whole = file.read_bytes()
    for content in (b"no picture", whole[: whole.index(b"IDAT") + 6]):
        file.write_bytes(content)
        caplog.clear()
        assert len(read_splits(scenes, LABELS, SIZE, MEAN, STD).test) == 2
        assert "skipped 1 image that cannot be read: 0001.png (labels/0001.png: " in caplog.text
        with pytest.raises(InputError, match="1 image cannot be read"):
            find_split_files(scenes, LABELS, strict=True)


def turned(file: Path, orientation: int) -> None:
    """Store an image lying, with the tag that makes it upright; 1 takes the tag off."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(file) as image:
        stored = image.transpose(Image.Transpose.ROTATE_90) if orientation == 6 else image.copy()
    stored.save(file, exif=exif)


def test_labels_are_turned_as_their_images_are(scenes: Path):
    name, numbers = "a_000.png", np.array([[0, 1, 2], [2, 2, 2]], np.uint8)
    images, labels = scenes / "train/images" / name, scenes / "train/labels" / name
    for dtype in (np.uint8, np.uint16):
        target(labels, numbers.astype(dtype))
        turned(labels, 6)
        with Image.open(labels) as stored:
            assert stored.size == (2, 3)
        splits = read_splits(scenes, LABELS, SIZE, MEAN, STD, select={"b"})
        assert splits.train[0].target.tolist() == numbers.tolist()
    before = read_splits(scenes, LABELS, SIZE, MEAN, STD, select={"b"}).train[0]
    turned(images, 6)
    after = read_splits(scenes, LABELS, SIZE, MEAN, STD, select={"b"}).train[0]
    assert torch.equal(before.image, after.image)
    assert torch.equal(before.target, after.target)


def test_a_label_of_which_it_is_unknown_which_way_up_it_is(scenes: Path):
    images, labels = (scenes / "train" / kind / "a_000.png" for kind in ("images", "labels"))
    turned(images, 6)
    assert len(find_split_files(scenes, LABELS)) == 2  # a label as wide as the upright image is upright
    target(labels, np.zeros((3, 2), np.uint8))
    assert "size is that of the image before it is turned" in refused(scenes)
    target(labels, np.zeros((2, 3), np.uint8))
    picture(images, 0)
    turned(images, 3)
    assert "size fits the image both ways" in refused(scenes)


def test_too_few_images(tmp_path: Path):
    for content in range(2):
        picture(tmp_path / f"{content}.png", content)
    assert "2 images cannot be divided into 3" in refused(tmp_path, Features())


def test_doubles_across_splits(scenes: Path):
    (scenes / "val" / "images" / "0001.png").write_bytes((scenes / "train" / "images" / "a_000.png").read_bytes())
    assert "share an image" in refused(scenes)


def test_camvid(data: Path, caplog: pytest.LogCaptureFixture):
    splits = read_splits(data / "camvid", Segmentation(11), (64, 96), MEAN, STD, select={"0006R0"})
    assert (len(splits.train), len(splits.select), len(splits.test)) == (266, 101, 101)
    assert splits.record()["test_shares_with_train"] == ["0016E5"]
    assert set(splits.train.groups) == {"0001TP", "0016E5"}
    image, labels = splits.test[100]
    assert labels is not None
    assert (image.shape, labels.shape) == ((3, 64, 96), (360, 480))
    assert labels.unique().tolist()[-1] == 11
    task = Segmentation(11)
    right = torch.nn.functional.one_hot(labels.long(), 12)[..., :11].permute(2, 0, 1)[None]
    assert task.metrics(task.counts(right, labels[None])) == {"miou": 1, "pixel_accuracy": 1}
    # Without `select`: of 367, 62 are nearer to a fifth than 101.
    assert set(read_splits(data / "camvid", task, (64, 96), MEAN, STD, limit=1).select.groups) == {"0001TP"}


def test_nyuv2(data: Path):
    task = Depth("depth", 0.1, 10, crop=(22, 235, 20, 300))
    splits = read_splits(data / "nyuv2", task, (48, 64), MEAN, STD, depth_scale=10 / 255, saturated=255)
    assert (len(splits.train), len(splits.select), len(splits.test)) == (160, 40, 40)
    samples = [splits.test[i] for i in range(4)]
    depth = torch.stack([each.target for each in samples if each.target is not None])
    assert depth.shape == (4, 240, 320)
    assert 0 <= depth.min() <= depth.max() < 10
    disparity = 1 / depth.clamp_min(10 / 255)
    found = task.metrics(task.counts(3 * disparity + 1, depth))
    assert found["delta1"] > 0.999
    assert torch.isfinite(task.loss(torch.randn(4, 48, 64), depth))
