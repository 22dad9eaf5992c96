"""`LoadedFile`: a written file as one callable, which checks its inputs before it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jetvit.passes.targets.signature import Bound, Signature
from jetvit.patterns.errors import InputError

Run = Callable[[Bound], Any]
"""Runs checked inputs: the outputs, nested as the original's."""


class LoadedFile:
    """A file that is ready to run.

    Attributes:
        path: the file.
        kind: "pt2", "aoti", "onnx" or "tensorrt".
        signature: what it takes and returns; None for an AOTInductor package that jetvit did not write.
    """

    def __init__(self, path: Path, kind: str, signature: Signature | None, run: Run):
        self.path = path
        self.kind = kind
        self.signature = signature
        self._run = run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Raises:
            InputError: the file does not take these inputs.
        """
        with torch.no_grad():
            if self.signature is None:
                return self._run(Bound(args, kwargs, []))
            return self._run(self.signature.bind(self.path.name, args, kwargs))

    def __repr__(self) -> str:
        return f"jetvit.load({str(self.path)!r}): {KINDS[self.kind]}, takes {self.signature or 'unknown inputs'}"

    def warm_up(self) -> None:
        """Run the model twice on zeros, in the sizes it was written with.

        Raises:
            InputError: the file does not say which inputs it takes.
        """
        if self.signature is None:
            raise InputError(
                f"{self.path} cannot be warmed up",
                why="it does not say which inputs it takes: jetvit did not write it",
                do="call it with inputs of your own",
            )
        args, kwargs = self.signature.examples()
        for _ in range(2):
            self(*args, **kwargs)


KINDS = {
    "pt2": "a program of torch.export",
    "aoti": "an AOTInductor package",
    "onnx": "an ONNX model",
    "tensorrt": "a program with TensorRT engines",
}


def refused_inputs(path: Path, bound: Bound, error: Exception) -> InputError:
    """Return the refusal of inputs that the runtime of a file did not take."""
    shapes = ", ".join("×".join(map(str, each.shape)) for each in bound.tensors)
    return InputError(
        f"{path.name} does not take inputs of {shapes}",
        why=" ".join(str(error).split())[:300],
        do="give inputs of sizes that the model was captured for",
    )
