"""`--dynamic`: a program whose batch, height and width are open, or the reason why this model has no such program.

torch.export specialises in silence: a model that turns its token grid into Python ints is captured without an error,
and the program then refuses, or gets wrong, every other size. So the program is run at another size and compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from jetvit.commands.subject import Subject
from jetvit.models import reason
from jetvit.passes.capture import export_model
from jetvit.passes.differences import tensors
from jetvit.patterns.errors import CaptureError

PATCH_SIZES = (16, 14, 8)
"""To try where a model does not tell its own."""
CLOSE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest error against the largest output, by dtype: the same operators in another order."""


def capture_dynamic(model: nn.Module, subject: Subject) -> ExportedProgram:
    """Capture a model with its batch, height and width open, and prove it at another size.

    Args:
        model: the module to capture, called as `subject.model` is.
        subject: how it is called.
    Raises:
        CaptureError: torch.export cannot leave the sizes open, or the program fails at another size.
    """
    args, kwargs = subject.call(_noise(2, subject.size))  # torch.export fixes an axis of length 1
    sizes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}, *(None for _ in kwargs))
    size, batch, expected = _other_size(model, subject)
    try:
        program = export_model(model, args, kwargs, sizes)
    except CaptureError as error:
        raise _refusal(subject, size, _letters(error.why)) from error
    try:
        with torch.no_grad():
            found = program.module()(*batch[0], **batch[1])
    except Exception as error:  # a guard, or whatever operator meets a shape that it cannot take
        if _takes_two(program, subject, size):
            raise CaptureError(
                "the model cannot be captured with an open batch",
                why=f"torch.export's program takes two images and more, and not one: {_letters(str(error))[:300]}",
                do="leave --dynamic out; or export it in Python with jetvit.export(..., dynamic_shapes=...), and never "
                "call it with a single image",
            ) from error
        why = f"torch.export fixed a size in it: captured at {_text(subject.size)}, it fails for one image of "
        raise _refusal(subject, size, f"{why}{_text(size)}. {_letters(str(error))[:300]}") from error
    if not _close(found, expected):
        why = f"captured at {_text(subject.size)}, it gives other results than the model for {_text(size)}"
        raise _refusal(subject, size, why)
    return program


def _takes_two(program: ExportedProgram, subject: Subject, size: tuple[int, int]) -> bool:
    args, kwargs = subject.call(_noise(2, size))
    try:
        with torch.no_grad():
            program.module()(*args, **kwargs)
    except Exception:  # as with one image
        return False
    return True


def _refusal(subject: Subject, other: tuple[int, int], why: str) -> CaptureError:
    advice = "leave --dynamic out, and capture at the size that you need"
    if subject.size == subject.loaded.image_size:  # there, some models pass over the resampling of positions
        advice += f"; or try another size than the model's own, such as --size {other[0]}x{other[1]}"
    return CaptureError("the model cannot be captured with open sizes", why=why, do=advice)


def _other_size(model: nn.Module, subject: Subject) -> tuple[tuple[int, int], Any, Any]:
    """A size of another height, width, aspect and area that the model takes, its call, and its output."""
    refusal: Exception | None = None
    for size in _larger(subject.size, subject.loaded.patch_size):
        batch = subject.call(_noise(1, size))
        try:
            with torch.no_grad():
                return size, batch, model(*batch[0], **batch[1])
        except Exception as error:  # the model is anyone's
            refusal = error
    raise CaptureError(
        "the model takes no other image size",
        why=f"called with {_text(size)} in place of {_text(subject.size)}, it raises {reason(refusal)}",  # type: ignore[arg-type]
        do="leave --dynamic out",
    )


def _larger(size: tuple[int, int], patch_size: int | None) -> Iterator[tuple[int, int]]:
    """Sizes a little larger than `size` (a smaller one may be below a bound that is right), then a much larger one."""
    height, width = size
    for side in (patch_size,) if patch_size else PATCH_SIZES:
        if height % side == width % side == 0:
            yield height + side, width + 2 * side
    yield 2 * height, 3 * width


def _close(found: Any, expected: Any) -> bool:
    ours, theirs = tensors(found), tensors(expected)
    return len(ours) == len(theirs) and all(map(_same, ours, theirs))


def _same(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    if not theirs.is_floating_point() or theirs.numel() == 0:
        return True
    error = (ours.float() - theirs.float()).abs().max()
    return bool(error <= CLOSE.get(theirs.dtype, 1e-3) * theirs.float().abs().max().clamp_min(1e-6))


def _noise(batch: int, size: tuple[int, int]) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


def _letters(text: str) -> str:
    """torch's "pixel_values.size()[2]" as "height", without its advice."""
    names = {"0": "batch", "2": "height", "3": "width"}
    text = re.sub(r"(L\[')?\w+('\])?\.size\(\)\[([023])\]", lambda match: names[match[3]], text)
    return text.partition(" If you're using mark_dynamic")[0]  # advice for those who call torch.export themselves


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
