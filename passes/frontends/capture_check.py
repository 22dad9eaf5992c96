"""The check that a captured program computes what its model does.

`torch.export` runs a model's own code, which may take another way there: it asks whether it is being traced, it reads
no values. The program is then a program of another model, and nothing else would tell the user. Nor would anything tell
of a model that is captured in training mode.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from jetvit.passes.frontends.differences import (
    copied,
    differ,
    largest_error,
    tensors,
    tensors_by_name,
    with_own_buffers,
)
from jetvit.passes.frontends.unchanged import unchanged
from jetvit.passes.graph.source_lines import first_lines
from jetvit.patterns.calls import argument
from jetvit.patterns.errors import CaptureError
from jetvit.torch_private import FakeTensor, OpOverload, pytree, reorder_kwargs

log = logging.getLogger(__name__)


def check_capture(model: nn.Module, program: ExportedProgram, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Run a model and its program on the inputs of its capture, and compare what they yield.

    A model that draws random numbers is not compared, nor one without values, nor one that does not run here.

    Raises:
        CaptureError: the program computes something else.
    """
    given = (*model.parameters(), *model.buffers(), *tensors((args, kwargs)))
    if any(isinstance(each, FakeTensor) or each.is_meta for each in given):
        return
    run = _Runs(model, program, args, kwargs)
    try:
        expected = run.model(seed=0)
    except Exception as error:  # not enough memory, or an operator that has no kernel for this device
        log.warning("what was captured was not compared with the model, which did not run: %s", first_lines(error))
        return
    try:
        found = run.program(seed=0)
    except Exception as error:
        raise CaptureError(
            f"what torch.export captured of {type(model).__name__} does not run, while the model does",
            why=first_lines(error),
            do="report this to PyTorch with the model; torch.compile(model, backend='jetvit') captures it otherwise",
        ) from error
    if any(isinstance(each, FakeTensor) for each in found):
        raise CaptureError(
            f"what torch.export captured of {type(model).__name__} computes no values",
            why="it keeps a tensor without values, which the export made, as a constant",
            do="let the model call no torch.func; torch.compile(model, backend='jetvit') captures it otherwise",
        )
    try:
        _, wrong = largest_error(found, expected, loose=0.1)  # both run the same operators
        random = bool(wrong) and differ(run.model(seed=1), expected)
    except RuntimeError as error:  # sparse, quantised or without values, or too large for a copy
        log.warning("what was captured was not compared with the model: %s", first_lines(error))
        return
    if not wrong or random:
        return
    raise CaptureError(
        f"what torch.export captured of {type(model).__name__} does not compute what the model does",
        why=f"the model's code takes another way while it is traced: {wrong}",
        where=run.first_difference(),
        do="let its code compute the same whether it is traced or not; it may ask for that, or read a tensor's values",
    )


def warn_of_training(model: nn.Module, program: ExportedProgram) -> None:
    """Warn of a program that drops values at random or normalises by its batch, as a model in training does."""
    nodes = [node for node in program.graph.nodes if node.op == "call_function" and _is_of_training(node)]
    if nodes and any(module.training for module in model.modules()):
        more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
        log.warning(
            "%s is in training mode, and so is what was captured of it (%s%s); call model.eval() first",
            type(model).__name__,
            nodes[0].name,
            more,
        )


def _is_of_training(node: Node) -> bool:
    if not isinstance(node.target, OpOverload):
        return False
    given = {
        each.name: argument(node, position, each.name)
        for position, each in enumerate(node.target._schema.arguments)
        if each.name in ("p", "dropout_p", "train", "training")
    }
    return bool(given.get("dropout_p") or given.get("train") or given.get("training")) and given.get("p") != 0


@dataclass
class _Runs:
    """Runs of a model and of its program on the same inputs; neither inputs nor buffers nor random state change."""

    _model: nn.Module
    _program: ExportedProgram
    _args: Sequence[Any]
    _kwargs: Mapping[str, Any]

    def model(self, seed: int) -> list[Tensor]:
        with unchanged(self._model):
            return self._run(with_own_buffers(self._model), seed)

    def program(self, seed: int) -> list[Tensor]:
        return self._run(with_own_buffers(self._program.module()), seed)

    def first_difference(self) -> str:
        """The first module, in the order in which modules finish, whose result the program does not have."""
        results: list[tuple[str, _Digest]] = []

        def note(name: str) -> Any:
            return lambda module, args, result: results.extend((name, each) for each in _digests(result)[:1])

        with unchanged(self._model):
            for name, module in self._model.named_modules():
                module.register_forward_hook(note(f"{name} ({type(module).__name__})"))
            self._run(with_own_buffers(self._model), seed=0)
        nodes = _Nodes(with_own_buffers(self._program.module()))
        self._run(lambda *args, **kwargs: nodes.run(*self._flat(args, kwargs), enable_io_processing=False), seed=0)
        return next((name for name, digest in results if not any(digest.near(each) for each in nodes.digests)), "")

    def _flat(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The inputs as the placeholders of the program take them."""
        return pytree.tree_leaves((args, reorder_kwargs(dict(kwargs), self._program.call_spec.in_spec)))

    def _run(self, function: Any, seed: int) -> list[Tensor]:
        devices = {each.device for each in self._model.parameters() if each.is_cuda}
        with torch.no_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            args, kwargs = copied((tuple(self._args), dict(self._kwargs)))
            return tensors_by_name(function(*args, **kwargs))


@dataclass(frozen=True)
class _Digest:
    """A summary of a tensor, so that the results of all modules need no room: its shape, Σx and Σ|x|."""

    shape: tuple[int, ...]
    total: float
    size: float

    def near(self, other: _Digest) -> bool:
        loose = 1e-3 * max(self.size, other.size) + 1e-12
        apart = max(abs(self.total - other.total), abs(self.size - other.size))
        return self.shape == other.shape and apart <= loose


def _digests(value: Any) -> list[_Digest]:
    found = [each.detach().double().nan_to_num() for each in tensors(value) if each.is_floating_point()]
    return [_Digest(tuple(each.shape), each.sum().item(), each.abs().sum().item()) for each in found]


class _Nodes(Interpreter):
    """Runs a program and keeps the digests of all that its nodes yield."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.digests: set[_Digest] = set()
        return super().run(*args, **kwargs)

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        self.digests.update(_digests(result))
        return result
