"""The model that a command works on, with the images that it is called with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from jetvit.commands.progress import Progress
from jetvit.commands.requests import ModelRequest, Normalisation
from jetvit.models.huggingface import find_hub_model
from jetvit.models.image_files import ImageFiles
from jetvit.models.images import IMAGENET_MEAN, IMAGENET_STD, ImageFolder, check_size, normalise, synthetic_images
from jetvit.models.load import load_model
from jetvit.models.loaded import LoadedModel
from jetvit.passes.frontends.capture import capture
from jetvit.passes.frontends.open_sizes import Spelling, export_open
from jetvit.patterns.errors import InputError
from jetvit.patterns.find import find_sites
from jetvit.patterns.wording import counted

Batch = tuple[tuple[Any, ...], dict[str, Any]]
RANDOM = "The weights are random: the speed is real, the quality is not."


@dataclass(frozen=True)
class Subject:
    """A loaded model, and the images that it is called with: [batch, 3, *size] of `dtype` on `device`."""

    loaded: LoadedModel
    size: tuple[int, int]
    batch: int
    dtype: torch.dtype
    device: torch.device

    @property
    def model(self) -> nn.Module | ExportedProgram:
        """The model."""
        return self.loaded.model

    def call(self, images: Tensor) -> Batch:
        """The (args, kwargs) of a call on normalised images."""
        if not self.dtype.is_floating_point:
            images = images.round()
        return self.loaded.inputs(images.to(self.device, self.dtype))

    def example(self) -> Batch:
        """The (args, kwargs) of a call on drawn pictures."""
        return self.call(normalise(synthetic_images(self.batch, self.size), *self._normalisation()))

    def export_open(self, model: nn.Module) -> ExportedProgram:
        """Export a module that is called as this model is, with batch, height and width open.

        Raises:
            CaptureError: as `jetvit.passes.frontends.open_sizes.export_open`.
        """
        args, kwargs = self.example()
        return export_open(
            model,
            args,
            kwargs,
            patch_size=self.loaded.patch_size,
            own_size=self.loaded.image_size or (0, 0),
            spelling=Spelling("--dynamic", "another size than the model's own, such as --size {}"),
        )

    def images(self, files: ImageFiles, asked: Normalisation) -> ImageFolder:
        """Return the images of files at this size, normalised as asked or as the model says."""
        return ImageFolder(files, self.size, *self.normalisation(asked))

    def normalisation(self, asked: Normalisation) -> tuple[Sequence[float], Sequence[float]]:
        """Return the mean and the standard deviation of each channel, as asked or as the model says."""
        mean, std = self._normalisation()
        if not self.dtype.is_floating_point:
            note(f"the model takes {self.dtype} images: they are given as they are, from 0 to 255")
            if asked.mean or asked.std:
                raise InputError("--mean and --std are for images of floating-point numbers", do="leave them out")
        elif self.loaded.mean is None and (asked.mean is None or asked.std is None):
            note("the model does not say how its images are normalised: ImageNet's values are taken; see --mean, --std")
        if asked.std is not None and min(asked.std) <= 0:
            raise InputError(
                f"--std holds {min(asked.std):g}", why="images are divided by it", do="give numbers above 0"
            )
        return asked.mean or mean, asked.std or std

    def batches(self, folder: ImageFolder, progress: Progress) -> list[Batch]:
        """The folder's images as whole batches; images that fill no batch are left out, with a note.

        Raises:
            InputError: fewer images than one batch, or one that cannot be read.
        """
        whole, left = divmod(len(folder), self.batch)
        if whole == 0:
            raise InputError(
                f"{counted(len(folder), 'image')} cannot fill a batch of {self.batch}",
                where=str(folder.path),
                do="give more images (see --limit) or a smaller --batch",
            )
        if left:
            note(f"{left} of {counted(len(folder), 'image')} left out: too few for a batch of {self.batch}")
        batches = []
        for images in folder.batches(self.batch):
            if len(images) == self.batch:
                batches.append(self.call(images))
                progress("reading images", len(batches), whole)
        return batches

    def _normalisation(self) -> tuple[Sequence[float], Sequence[float]]:
        if not self.dtype.is_floating_point:  # such a model scales the bytes of a picture itself
            return (0.0,) * 3, (1 / 255,) * 3
        return self.loaded.mean or IMAGENET_MEAN, self.loaded.std or IMAGENET_STD


def load_subject(request: ModelRequest) -> Subject:
    """Load the model, print its notes, and settle its input.

    Raises:
        InputError: the model cannot be loaded, or does not take images of that size or batch.
    """
    loaded = load_model(
        request.spec,
        weights=request.weights,
        model_args=request.model_args,
        dtype=request.dtype,
        device=request.device,
    )
    for each in loaded.notes:
        note(each)
    batch, dtype = request.batch or 1, torch.float32
    if isinstance(loaded.model, ExportedProgram):
        image = _image_of(loaded.model, request.spec)
        _refuse_other_sizes(image, request)
        batch, dtype = request.batch or (image.shape[0] if isinstance(image.shape[0], int) else 1), image.dtype
    else:
        dtype = next((each.dtype for each in loaded.model.parameters() if each.is_floating_point()), dtype)
    size = request.size or loaded.input_size or loaded.image_size
    if size is None:
        raise InputError(
            f"the image size of {request.spec} is not known", do="say it with --size, such as --size 704x960"
        )
    if loaded.patch_size is not None:
        check_size(size, loaded.patch_size)
    return Subject(loaded, size, batch, dtype, torch.device(request.device))


def made_from(spec: str, images: str) -> dict[str, str]:
    """Name the model and the folder of images that a plan is made from, without the paths of this machine."""
    name = spec.removeprefix("hf:")
    if name != spec:
        model = spec if find_hub_model(name) is not None else f"hf:{Path(name).name}"
    else:
        model = Path(name).name
    return {
        "model": model,
        "images": Path(images).resolve().name,
    }


def note(text: str) -> None:
    """Tell the user something that is no result."""
    print(f"note: {text}", file=sys.stderr)


def refuse_nan_weights(model: nn.Module | ExportedProgram) -> None:
    """Refuse a parameter with a NaN or an infinity by its name.

    Weight files are checked as they are read; this is for what a factory returns and what a program holds.

    Raises:
        InputError: there is one.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not torch.isfinite(parameter).all():
            raise InputError(
                f"the weight {name} holds NaN or Inf",
                why="nothing can be measured on it",
                do="load or convert the weights again; fp16 overflows where bf16 and fp32 do not",
            )


def refuse_rewritten(subject: Subject) -> None:
    """Refuse a program in which jetvit has rewritten attention: it is no original to compare with.

    Raises:
        InputError: it is one.
    """
    if not isinstance(subject.model, ExportedProgram):
        return
    rewritten = find_sites(capture(subject.model)).rewritten
    if rewritten:
        raise InputError(
            "the program was rewritten by jetvit already",
            why=f"it has {counted(len(rewritten), 'attention site')} without full attention, so there is no "
            "original to measure against",
            where=subject.loaded.spec,
            do="give the original model",
        )


def _image_of(program: ExportedProgram, spec: str) -> Tensor:
    """The batch of images among the inputs of a program, as a tensor without values."""
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" and node.name in names else None
        if isinstance(value, Tensor) and value.ndim == 4:
            if value.shape[1] != 3 and isinstance(value.shape[1], int):
                shape = "×".join(str(length) if isinstance(length, int) else "any" for length in value.shape)
                raise InputError(
                    f"{spec} takes no images of [batch, 3, height, width]",
                    why=f"its input {node.name} is {shape}",
                    do="export the model with images of three channels, which stand before height and width",
                )
            return value
    raise InputError(f"{spec} takes no images", why="none of its inputs is [batch, channel, height, width]")


def _refuse_other_sizes(image: Tensor, request: ModelRequest) -> None:
    """Refuse options that ask a program for sizes other than those that it was exported for."""
    held = [length if isinstance(length, int) else None for length in image.shape]
    height, width = request.size or (None, None)
    asked = ((request.batch, held[0], "--batch"), (height, held[2], "--size"), (width, held[3], "--size"))
    option = next((name for wish, length, name in asked if wish and length and wish != length), None)
    if option is None and request.dynamic and any((held[0], held[2], held[3])):
        option = "--dynamic"
    if option is not None:
        shape = "×".join("any" if length is None else str(length) for length in held)
        raise InputError(
            f"{option} cannot change an exported program",
            why=f"its sizes are part of the file: it takes images of {shape}",
            where=request.spec,
            do=f"leave {option} out, or export the model again from its source",
        )
