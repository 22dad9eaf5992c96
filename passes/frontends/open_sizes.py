"""`dynamic=True`: a program whose batch, height and width are open, or the reason why a model has no such program.

torch.export specialises in silence: a model that turns its token grid into Python ints is captured without an error,
and the program then refuses, or gets wrong, every other size. So the program is run at another size and compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from jetvit.passes.frontends.calling import signature_of
from jetvit.passes.frontends.capture import export_model, refuse_inputs
from jetvit.passes.frontends.differences import copied, differ, tensors
from jetvit.passes.frontends.emit import OptimizedModule
from jetvit.passes.frontends.size_guards import AXES, SizeGuard, named_axes, noted_guards
from jetvit.passes.frontends.unchanged import unchanged
from jetvit.passes.graph.source_lines import failing_line, first_lines
from jetvit.patterns.errors import CaptureError, InputError
from jetvit.patterns.wording import counted
from jetvit.torch_private import FakeTensor, pytree
from jetvit.torch_private import OptimizedModule as CompiledModule

Size = tuple[int, int]
PATCH_SIZES = (16, 14, 8)
"""To try where a model does not specify its own."""
CLOSE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest error against the largest output, by dtype: the same operators in another order."""
_RESAMPLES = "interpolate_pos_encoding"
"""The argument of many models of transformers that makes them take images of other sizes."""
WRITTEN_OUT = "dynamic_shapes={'NAME': {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}, with torch.export.Dim"


@dataclass(frozen=True)
class Spelling:
    """The user's words for open sizes in messages: the option, and the way to give another image size."""

    option: str = "dynamic=True"
    other_size: str = "example images of another size than the model's own, such as {}"


def export_sizes(
    model: nn.Module | ExportedProgram,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    dynamic: bool = False,
    check: bool = True,
) -> ExportedProgram:
    """Export a model as `export_model` does; `dynamic` leaves batch, height and width of the images open.

    Raises:
        InputError: both `dynamic` and `dynamic_shapes` are given, or `dynamic` and no single image input.
        CaptureError: as `export_model` and `export_open`.
    """
    if not dynamic:
        return export_model(model, args, kwargs, dynamic_shapes, check)
    if dynamic_shapes is not None:
        raise InputError(
            "dynamic=True and dynamic_shapes are both given",
            why="dynamic=True stands for the dynamic_shapes that leave batch, height and width of the images open",
            do="give one of them",
        )
    if not isinstance(model, nn.Module) or isinstance(model, OptimizedModule | CompiledModule):
        program = export_model(model)  # which refuses what is neither a module nor a program
        _refuse_fixed(program)
        return program
    return export_open(model, args, kwargs or {}, check=check)


def export_open(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    patch_size: int | None = None,
    own_size: Size | None = None,
    check: bool = True,
    spelling: Spelling = Spelling(),
) -> ExportedProgram:
    """Export a model with batch, height and width of its images open, and prove it at another size.

    Args:
        model: the module.
        args, kwargs: example inputs with one tensor of images, [batch, channel, height, width]; the batch may be 1.
        patch_size: what height and width are multiples of, if that is known.
        own_size: the (height, width) that the model is configured for, if that is known.
        check: compare the program with the model on the example inputs too.
        spelling: for messages.
    Raises:
        InputError: the tensors among the inputs are not one tensor of images.
        CaptureError: torch.export cannot leave the sizes open, or the program fails at another size.
    """
    call = _Call.find(args, kwargs, spelling)
    capture = _Capture(model, call, own_size, spelling)
    size, batch, expected = capture.other_size(patch_size)
    example = call.with_images(torch.cat([call.images] * 2) if len(call.images) == 1 else call.images)
    guards: list[SizeGuard] = []
    try:
        with noted_guards(guards):
            program = export_model(model, *example, call.shapes(model, example), check)
    except CaptureError as error:
        if capture.failing(guards, size) is None:  # not about sizes, or not to be told from what torch.export says
            do = error.do.replace("leave dynamic_shapes out", f"leave {spelling.option} out")
            raise CaptureError(error.what, why=named_axes(error.why), where=error.where, do=do) from error
        raise capture.refusal(size, "", guards) from error
    try:
        with torch.no_grad():
            found = program.module()(*copied(batch[0]), **copied(batch[1]))
    except Exception as error:  # a guard, or whatever operator meets a shape that it cannot take
        if capture.takes_two(program, size):
            raise CaptureError(
                "the model cannot be captured with an open batch",
                why=f"torch.export's program takes two images and more, and not one: {named_axes(str(error))[:300]}",
                do=f"leave {spelling.option} out; or export it in Python with jetvit.export(..., {WRITTEN_OUT}), and "
                "never call it with a single image",
            ) from error
        why = f"torch.export fixed a size: captured at {capture.size_text}, the program fails for one image of "
        raise capture.refusal(size, f"{why}{_text(size)}: {named_axes(str(error))[:300]}", guards) from error
    if not _close(found, expected) and not capture.is_random(batch, expected):
        why = f"captured at {capture.size_text}, the program gives other results than the model for {_text(size)}"
        raise capture.refusal(size, why, guards)
    return program


@dataclass(frozen=True)
class _Call:
    """The inputs of a call, with the tensor of images among them."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    images: Tensor

    @classmethod
    def find(cls, args: Sequence[Any], kwargs: Mapping[str, Any], spelling: Spelling) -> _Call:
        given = [*args, *kwargs.values()]
        images = [value for value in given if isinstance(value, Tensor) and value.ndim == 4]
        others = len(tensors(given)) - len(images)
        if len(images) != 1 or others:
            shapes = ", ".join("×".join(map(str, each.shape)) for each in tensors(given)) or "no tensor"
            raise InputError(
                f"{spelling.option} needs one tensor of images, [batch, channel, height, width]",
                why=f"the model is called with {counted(len(tensors(given)), 'tensor')}: {shapes}",
                do=f"say which axes of each input are open: {WRITTEN_OUT}, and None for each other input",
            )
        return cls(tuple(args), dict(kwargs), images[0])

    def with_images(self, images: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs of a call with other images."""
        args = tuple(images if value is self.images else value for value in self.args)
        return args, {name: images if value is self.images else value for name, value in self.kwargs.items()}

    def noise(self, batch: int, size: Size) -> Tensor:
        """Random images of the dtype and on the device of the example."""
        like = self.images
        noise = torch.randn(batch, like.shape[1], *size, generator=torch.Generator().manual_seed(0))
        if not like.dtype.is_floating_point:
            noise = (noise * 50 + 128).clamp(0, 255).round()
        return noise.to(like.device, like.dtype)

    def shapes(self, model: nn.Module, example: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        """`dynamic_shapes` of torch.export for these inputs."""

        def spec(value: Any) -> Any:
            return dict.fromkeys(AXES, Dim.DYNAMIC) if isinstance(value, Tensor) else None

        signature = signature_of(model)
        args, kwargs = example
        bound = signature.bind(*args, **kwargs).arguments if signature is not None else {}
        return pytree.tree_map(spec, dict(bound)) if bound else tuple(map(spec, (*args, *kwargs.values())))


@dataclass(frozen=True)
class _Capture:
    """A model that is captured with open sizes, and what its refusals need to know."""

    model: nn.Module
    call: _Call
    own_size: Size | None
    spelling: Spelling
    size_text: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size_text", _text(self.size))

    @property
    def size(self) -> Size:
        return (self.call.images.shape[2], self.call.images.shape[3])

    def other_size(self, patch_size: int | None) -> tuple[Size, Any, Any]:
        """A size of another height, width, aspect and area that the model takes, its call, and its output."""
        refusal: Exception | None = None
        for size in _larger(self.size, patch_size):
            batch = self.call.with_images(self.call.noise(1, size))
            try:
                return size, batch, self._run(batch)
            except Exception as error:  # the model is anyone's
                refusal = error
        refuse_inputs(self.model, self.call.args, self.call.kwargs)
        assert refusal is not None
        resample = "let the model resample what it adds to its tokens"
        signature = signature_of(self.model)
        if signature is not None and _RESAMPLES in signature.parameters and _RESAMPLES not in self.call.kwargs:
            resample = f"call the model with kwargs={{'{_RESAMPLES}': True}}"
        raise CaptureError(
            "the model takes no other image size",
            why=f"called with {_text(size)} in place of {self.size_text}, it raises {type(refusal).__name__}: "
            f"{first_lines(refusal)[:300]}",
            where=failing_line(refusal),
            do=f"leave {self.spelling.option} out, or {resample}",
        )

    def is_random(self, batch: Any, expected: Any) -> bool:
        """Report whether the model gives other results for the same images: it draws random numbers."""
        return differ(tensors(self._run(batch)), tensors(expected))

    def takes_two(self, program: ExportedProgram, size: Size) -> bool:
        """Report whether the program takes two images of a size."""
        args, kwargs = self.call.with_images(self.call.noise(2, size))
        try:
            with torch.no_grad():
                program.module()(*args, **kwargs)
        except Exception:  # as with one image
            return False
        return True

    def failing(self, guards: Sequence[SizeGuard], size: Size) -> SizeGuard | None:
        """The first condition that is false for another batch of a size; of those of the same line, the shortest."""
        lengths = {"batch": len(self.call.images) + 2, "height": size[0], "width": size[1]}
        failing = [guard for guard in guards if guard.fails(lengths)]
        of_one_line = [guard for guard in failing if guard.line == failing[0].line]
        return min(of_one_line, key=lambda guard: len(str(guard)), default=None)

    def refusal(self, other: Size, why: str, guards: Sequence[SizeGuard]) -> CaptureError:
        """The error for a model that is right at one size alone: which axes, by which line, and what to try."""
        option = self.spelling.option
        axes, every, where = "open sizes", "size", ""
        if (guard := self.failing(guards, other)) is not None:
            names = [name for name in AXES.values() if name in guard.axes.values()]
            axes, every = f"{'an ' * (len(names) == 1)}open {' and '.join(names)}", " and ".join(names)
            false_for = "another batch" if names == ["batch"] else _text(other)
            why = f"torch.export followed its code for `{guard}` alone, which is false for {false_for}"
            where = guard.line
        advice = f"leave {option} out, and capture at the size that you need"
        if where:
            advice += f"; or change that line to work for every {every}"
        if self.own_size in (None, self.size):  # there, some models pass over the resampling of positions
            advice += f"; or try {self.spelling.other_size.format(_text(other, self.own_size is not None))}"
        return CaptureError(f"the model cannot be captured with {axes}", why=why, where=where, do=advice)

    def _run(self, batch: Any) -> Any:
        args, kwargs = copied(batch)
        with torch.no_grad(), unchanged(self.model):
            return self.model(*args, **kwargs)


def _refuse_fixed(program: ExportedProgram) -> None:
    """Refuse a program that was exported for fixed sizes: they are part of it."""
    names = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    images = [value for value in values if isinstance(value, Tensor) and value.ndim == 4]
    for image in images:
        if fixed := [name for axis, name in AXES.items() if isinstance(image.shape[axis], int)]:
            shape = "×".join(str(length) if isinstance(length, int) else "any" for length in image.shape)
            raise CaptureError(
                f"dynamic=True cannot open the {' and '.join(fixed)} of an exported program",
                why=f"its sizes are part of it: it takes images of {shape}",
                do="export the model again with open sizes, or give the nn.Module",
            )


def _larger(size: Size, patch_size: int | None) -> Iterator[Size]:
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
    if not theirs.is_floating_point() or theirs.numel() == 0 or theirs.is_meta or isinstance(theirs, FakeTensor):
        return True
    error = (ours.float() - theirs.float()).abs().max()
    return bool(error <= CLOSE.get(theirs.dtype, 1e-3) * theirs.float().abs().max().clamp_min(1e-6))


def _text(size: Size, typed: bool = False) -> str:
    return f"{size[0]}{'x' if typed else '×'}{size[1]}"
