"""Numbers that a model's own code reads off tensors while it runs, such as `int(positions.max())`.

torch.export has no values to read. Where such a number comes from constants, parameters or buffers, and not from an
input, it is the same for every image of one size: the model is run once, the numbers are noted, and a second export is
told them. A number that an input has a part in cannot be told, and the line that reads it is named.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from jetvit.passes.frontends.differences import tensors
from jetvit.passes.graph.source_lines import causes, failing_line, running_line
from jetvit.patterns.errors import CaptureError
from jetvit.torch_private import TorchDispatchMode, as_if_exporting, pytree

log = logging.getLogger(__name__)
_READS = {
    Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__,
    Tensor.__contains__, Tensor.is_nonzero, Tensor.equal, Tensor.allclose, torch.is_nonzero, torch.equal,
    torch.allclose,
}  # fmt: skip
_INPUT, _WEIGHT = 1, 2


@dataclass(frozen=True)
class Read:
    """One number, or a list of them, that the model's code took out of a tensor; `line` is where it did."""

    function: Any
    shape: tuple[int, ...]
    line: str
    value: Any


def is_about_values(error: BaseException) -> bool:
    """True if an export failed because the model's code reads a value."""
    return any(
        "data-dependent" in str(each).lower() or "DataDependent" in type(each).__name__ for each in causes(error)
    )


def read_values(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Read]:
    """Run a model once, as its code runs in an export, and note every number that it reads off a tensor.

    Raises:
        CaptureError: an input has a part in one of them.
    """
    sources = _Sources()
    sources.mark((args, kwargs), _INPUT)
    sources.mark((list(model.parameters()), list(model.buffers())), _WEIGHT)
    recording = _Recording(sources)
    with torch.no_grad(), as_if_exporting(), recording, sources:
        model(*args, **kwargs)
    if recording.of_weights:
        line, count = recording.of_weights[0], len(recording.of_weights)
        more = f" and {count - 1} more" if count > 1 else ""
        log.warning("what the model reads off its parameters or buffers stays as it is now: %s%s", line, more)
    return recording.reads


class _Sources(TorchDispatchMode):
    """Follows which tensors an input, or a weight, has a part in, by their memory."""

    def __init__(self) -> None:
        super().__init__()
        self._marks: dict[StorageWeakRef, int] = {}
        self.are_noted = False  # reads that are under way now

    def mark(self, tree: Any, mark: int) -> None:
        for tensor in tensors(tree):
            self._marks[_memory(tensor)] = mark

    def of(self, tree: Any) -> int:
        """The marks of the tensors of a tree, together."""
        marks = 0
        for tensor in tensors(tree):
            marks |= self._marks.get(_memory(tensor), 0)
        return marks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        marks = self.of((args, kwargs))
        if func is torch.ops.aten._local_scalar_dense.default and not self.are_noted:
            # A tensor as the bound of a slice is read by torch's own code: an export cannot be told that.
            line = running_line()
            raise _read_of_input(line) if marks & _INPUT else _read_by_torch(line)
        shared = {_memory(tensor) for tensor in tensors((args, kwargs))}
        result = func(*args, **kwargs)
        written = args if func._schema.is_mutable else ()
        for tensor in tensors((result, written)):
            memory = _memory(tensor)
            self._marks[memory] = marks | (self._marks.get(memory, 0) if memory in shared else 0)
        return result


class _Recording(TorchFunctionMode):
    def __init__(self, sources: _Sources) -> None:
        super().__init__()
        self.sources = sources
        self.reads: list[Read] = []
        self.of_weights: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _READS:
            return func(*args, **(kwargs or {}))
        self.sources.are_noted = True
        try:
            result = func(*args, **(kwargs or {}))
        finally:
            self.sources.are_noted = False
        marks, line = self.sources.of(args), running_line()
        if marks & _INPUT:
            raise _read_of_input(line)
        if marks & _WEIGHT:
            self.of_weights.append(line)
        self.reads.append(Read(func, tuple(args[0].shape), line, result))
        return result


def _read_of_input(line: str) -> CaptureError:
    return CaptureError(
        "the model reads a value off what it computes from its input",
        why="torch.export has no values; the code after this line may differ from image to image",
        where=line,
        do="compute it with tensor operations, or use torch.compile(model, backend='jetvit'), which splits the model "
        "there",
    )


def size_of_values(error: BaseException) -> CaptureError:
    """The refusal of an export that failed on a size, after all numbers that the model's code reads were told."""
    return CaptureError(
        "the model's code looks at a size that depends on the values of a tensor",
        why="torch.export has no values, and so not the number of entries that torch.nonzero or a boolean mask takes",
        where=failing_line(error),
        do="let the code compute the same for each such size, or use torch.compile(model, backend='jetvit'), which "
        "splits the model there",
    )


def _read_by_torch(line: str) -> CaptureError:
    return CaptureError(
        "the model gives torch a tensor where it takes a number, such as the bound of a slice",
        why="torch.export has no values",
        where=line,
        do="write int(tensor) there, or use torch.compile(model, backend='jetvit'), which splits the model there",
    )


class Told(TorchFunctionMode):
    """Answers the same reads, in the same order, with the numbers that were noted.

    Raises:
        CaptureError: the code reads others.
    """

    def __init__(self, reads: Sequence[Read]) -> None:
        super().__init__()
        self._left = deque(reads)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _READS:
            return func(*args, **(kwargs or {}))
        line, read = running_line(), self._left.popleft() if self._left else None
        if read is not None and read.function is Tensor.tolist and func is Tensor.item:  # an export takes it apart
            values = [Read(Tensor.item, (), read.line, value) for value in pytree.tree_leaves(read.value)]
            self._left.extendleft(reversed(values[1:]))
            read = values[0] if values else None
        if read is None or (read.function, read.line, read.shape) != (func, line, tuple(args[0].shape)):
            raise CaptureError(
                "the model reads other values when it is exported than when it runs",
                why="its code takes another way there",
                where=line,
                do="use torch.compile(model, backend='jetvit')",
            )
        return read.value


def _memory(tensor: Tensor) -> StorageWeakRef:
    """The identity of a tensor's memory: no other memory gets it while the reference is kept, when it is freed too."""
    return StorageWeakRef(tensor.untyped_storage())
