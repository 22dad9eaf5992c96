"""Folders of images, with labels, with depths or without, as the splits of a search."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from jetvit.models.image_files import ImageFiles
from jetvit.models.images import ImageFolder
from jetvit.models.target_files import target_fault, target_files, target_folder, target_kind
from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted
from jetvit.search.data.splits import Sample, Splits, evenly_spaced
from jetvit.search.tasks.task import Task

log = logging.getLogger("jetvit.models.datasets")

# What the samples of one split may take in memory; those that come after are read again each time.
CACHE_BYTES = 2 * 2**30
SplitFiles = Mapping[Path, ImageFiles]
_LAYOUT = "folder/{train,val}/{images,labels}, or depths for labels"


def read_splits(
    folder: str | Path,
    task: Task,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    limit: int | None = None,
    select: Collection[str] | None = None,
    depth_scale: float | None = None,
    saturated: int | None = None,
    files: SplitFiles | None = None,
) -> Splits:
    """The images of a folder, to train, to select and to test.

    With labels, the folder holds train/images, val/images and, with a PNG of the same name for every image,
    train/labels and val/labels of class numbers, or train/depths and val/depths for the task "depth". What is in val
    is the test; a fifth of train selects. A task without labels takes such a folder as well, and any other folder of
    images; a tenth of those selects and a tenth is the test.

    Images of one group, such as a film, stay together. The group is the subfolder and the stem up to its last "_", or
    without one to its last run of digits: 0006R0 for 0006R0_f00930.png, unknown for 0004.png. Which groups are held
    out depends on their names and sizes alone. Where the group is unknown, it depends on what is in the file; so it
    does for all images where whole groups cannot be divided: the splits then share groups, and `Splits` warns of it.

    Args:
        folder: where the images are.
        task: `labelled` says whether there are targets, and `name` which.
        size, mean, std: as for `jetvit.models.images.ImageFolder`. Targets keep their own size.
        limit: at most so many images of each split, evenly spaced; it does not change which split an image is in.
        select: the groups that select, in place of those that come nearest to the share.
        depth_scale: metres of one unit of the depths, 8- or 16-bit; 0 is unknown.
        saturated: the unit that stands for this depth or more, and so is taken for unknown.
        files: what `find_split_files` returned for the folder; None searches it now.
    Returns:
        Splits of samples: an image float32 [3, height, width]; a target of labels, uint8 or int32, or depth in metres,
        float32, 0 where unknown, [own height, own width].
    Raises:
        InputError: a folder or a target is missing; a target is not of whole numbers, or not of the size of the others
            in its split; there are too few images; `select` names no group; an image is in two splits.
    """
    folder = Path(folder)
    if limit is not None and limit < 1:
        raise InputError(f"a limit of {limit} images leaves none", do="give a limit of 1 or more, or none")
    kind, read = target_kind(task, depth_scale, saturated)

    files = find_split_files(folder, task) if files is None else files

    def pool(path: Path) -> _Pool:
        return _pool_of(ImageFolder(files[path], size, mean, std))

    def split(source: _Pool, rows: list[int]) -> FolderSplit:
        return _limited(source, rows, limit, kind, read)

    if folder not in files:
        train, val = pool(folder / "train" / "images"), pool(folder / "val" / "images")
        left, chosen = _divided(train, [1 / 5], select)
        return Splits(split(train, left), split(train, chosen), split(val, list(range(len(val.keys)))))
    every = pool(folder)
    left, chosen, held = _divided(every, [1 / 10, 1 / 10], select)
    return Splits(split(every, left), split(every, chosen), split(every, held))


def find_split_files(folder: str | Path, task: Task, *, strict: bool = False) -> SplitFiles:
    """Find the images that `read_splits` divides, and decode each once, with its label or depth.

    An image is skipped, with a warning, if it or its target cannot be read.

    Args:
        folder, task: as for `read_splits`.
        strict: refuse unreadable files instead of skipping them.
    Returns:
        The files of every folder of images, by that folder.
    Raises:
        InputError: a folder is missing or without a readable image; with `strict` also a file that cannot be read; an
            image is turned by EXIF, and it is unknown whether its target is.
    """
    folder = Path(folder)
    if (folder / "train" / "images").is_dir():
        kind = target_folder(task)
        paths = [folder / part / "images" for part in ("train", "val")]
        return {
            path: ImageFiles.find(path, strict=strict, also_check=partial(target_fault, path, kind)) for path in paths
        }
    if task.labelled and folder.is_dir():
        raise InputError(
            f"{folder} holds no train/images", why=f"{task.name} needs {_LAYOUT}", do="lay it out like that"
        )
    return {folder: ImageFiles.find(folder, strict=strict)}


def find_test_files(folder: str | Path, task: Task, *, strict: bool = False) -> ImageFiles:
    """Find the images that a plan is checked on, and decode each once, with its label or depth.

    These are val/images of the folder, or else its images/, with labels or depths beside them; for a task without
    labels, which needs no such layout, all images of any other folder.

    Args:
        folder: where the images are.
        task, strict: as for `find_split_files`.
    Raises:
        InputError: as `find_split_files`.
    """
    folder = Path(folder)
    kind = target_folder(task)
    for path in (folder / "val" / "images", folder / "images"):
        if path.is_dir():
            return ImageFiles.find(path, strict=strict, also_check=partial(target_fault, path, kind))
    if task.labelled and folder.is_dir():
        layout = f"val/{{images,{kind}}}, or {{images,{kind}}}"
        raise InputError(
            f"{folder} holds no val/images and no images", why=f"{task.name} needs {layout}", do="lay it out like that"
        )
    return ImageFiles.find(folder, strict=strict)


def read_test_split(
    files: ImageFiles,
    task: Task,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    limit: int | None = None,
    depth_scale: float | None = None,
    saturated: int | None = None,
) -> FolderSplit:
    """The images of `find_test_files` with their targets.

    Args:
        files: of `find_test_files`.
        task, size, mean, std, limit, depth_scale, saturated: as for `read_splits`.
    Raises:
        InputError: a target is missing, not of whole numbers, or not of the size of the others.
    """
    kind, read = target_kind(task, depth_scale, saturated)
    pool = _pool_of(ImageFolder(files, size, mean, std))
    return _limited(pool, list(range(len(pool.keys))), limit, kind, read)


class FolderSplit:
    """Some images of a folder and their targets: a `jetvit.search.data.splits.Split`.

    Samples stay in memory once read, up to `CACHE_BYTES`.
    """

    def __init__(self, pool: _Pool, rows: Sequence[int], kind: str = "", read: Callable[[Path], Tensor] | None = None):
        self.keys = [pool.keys[row] for row in rows]
        self.groups = [pool.groups[row] for row in rows]
        self._images, self._rows, self._read = pool.images, rows, read
        self._targets = target_files(pool.images, rows, kind) if read else []
        self._cache: dict[int, Sample] = {}
        self._spare = CACHE_BYTES

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """The image and its target.

        Raises:
            InputError: one of the files is damaged.
        """
        if index in self._cache:
            return self._cache[index]
        target = self._read(self._targets[index]) if self._read else None
        sample = Sample(self._images[self._rows[index]], target)
        needed = sum(each.nbytes for each in sample if each is not None)
        if needed <= self._spare:
            self._spare -= needed
            self._cache[index] = sample
        return sample


def group_of(path: Path) -> str:
    """Name what an image was taken from, by its path in the folder of images; "" where the path does not tell."""
    if "_" in path.stem:
        start = path.stem.rpartition("_")[0]
    else:
        numbered = re.fullmatch(r"(.*?)[0-9]+[^0-9]*", path.stem)
        start = numbered[1] if numbered else ""
    return "/".join([*path.parent.parts, *([start] if start else [])])


@dataclass(frozen=True)
class _Pool:
    """The images under one folder, with the key and the group of each."""

    images: ImageFolder
    keys: list[str]
    groups: list[str]


def _pool_of(images: ImageFolder) -> _Pool:
    groups = [group_of(file.relative_to(images.path)) for file in images.files]
    return _Pool(images, [_sha256(file) for file in images.files], groups)


def _limited(
    pool: _Pool, rows: list[int], limit: int | None, kind: str, read: Callable[[Path], Tensor] | None
) -> FolderSplit:
    """At most `limit` of the rows, evenly spaced; the number of the others is logged."""
    chosen = [rows[place] for place in evenly_spaced(len(rows), limit or len(rows))]
    if left_out := len(rows) - len(chosen):
        log.info("%d of %s not read: the limit is %d", left_out, counted(len(rows), "image"), len(chosen))
    return FolderSplit(pool, chosen, kind, read)


def _divided(pool: _Pool, shares: Sequence[float], select: Collection[str] | None) -> list[list[int]]:
    """The rows that are left, then those of every share; the groups of `select` are the first share, where given."""
    if select is not None and (unknown := sorted(set(select) - set(pool.groups))):
        raise InputError(
            f"no group {', '.join(unknown)} in {pool.images.path}",
            why=f"the groups are {', '.join(sorted(set(pool.groups) - {''})[:8]) or 'unknown'}",
            do="name groups of these, or none",
        )
    by_group = [group or key for group, key in zip(pool.groups, pool.keys, strict=True)]
    for units in (by_group, pool.keys) if select is None else (by_group,):
        left, parts = list(range(len(units))), list[list[int]]()
        for share in shares:
            if select is not None and not parts:
                chosen = set(select)
            else:
                chosen = _nearest([units[row] for row in left], round(share * len(units)))
            parts.append([row for row in left if units[row] in chosen])
            left = [row for row in left if units[row] not in chosen]
        if left and all(parts):
            return [left, *parts]
    raise InputError(
        f"{counted(len(pool.keys), 'image')} cannot be divided into {len(shares) + 1}",
        why=f"different ones: {len(set(pool.keys))}, in {counted(len(set(by_group)), 'group')}",
        where=str(pool.images.path),
        do="give more images" if select is None else "give more images, or select other groups",
    )


def _nearest(units: Sequence[str], wanted: int) -> set[str]:
    """Units, neither none nor all, that are together the nearest to `wanted` images; the empty set of a single unit.

    Args:
        units: the unit of each image.
    """
    sizes = Counter(units)
    last = {0: ""}  # to every sum of sizes that can be reached, the unit that was added last
    # The order of hashes, and not of names: the first names may be those of the first films.
    for unit in sorted(sizes, key=lambda unit: hashlib.sha256(unit.encode()).hexdigest()):
        if max(wanted, 1) in last:
            break
        for total in list(last):
            if total < max(wanted, 1):
                last.setdefault(total + sizes[unit], unit)
    total = min((each for each in last if 0 < each < len(units)), key=lambda each: abs(each - wanted), default=0)
    chosen = set()
    while total:
        chosen.add(last[total])
        total -= sizes[last[total]]
    return chosen


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
