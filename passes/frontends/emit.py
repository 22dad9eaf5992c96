"""The way out: a rewritten graph as a module that behaves like the model it came from."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.fx import GraphModule

from jetvit.passes.frontends.calling import as_captured, other_shape
from jetvit.passes.frontends.fixed_sizes import fixed_sizes
from jetvit.patterns.errors import InputError, RewriteError


class OptimizedModule(nn.Module):
    """A rewritten model: the same call, the same parameter names, the same storage, a faster graph.

    It takes `eval()`, `train()` and `to(device)`; the graph is the one that was captured, so `train()` does not bring
    dropout back. A change of dtype is refused: casts in the graph were captured for one dtype.

    Args:
        program: the rewritten program.
        signature: of the model's `forward`; with it an input may be given by its name or by its position.
    """

    def __init__(self, program: ExportedProgram, signature: inspect.Signature | None = None):
        super().__init__()
        object.__setattr__(self, "_signature", signature)
        self._adopt(program)

    def _adopt(self, program: ExportedProgram) -> None:
        module = program.module()
        shared: dict[int, nn.Parameter] = {}
        for owner in module.modules():
            for name, parameter in owner._parameters.items():
                if parameter is not None:
                    # A parameter object of its own on the same storage: `to` moves this module and not the user's.
                    own = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
                    owner._parameters[name] = shared.setdefault(id(parameter), own)
        # The graph's module stays out of `_modules`, so that names have no prefix; both look at the same dictionaries.
        object.__setattr__(self, "_graph_module", module)
        object.__setattr__(self, "_program", program)
        self._parameters, self._buffers, self._modules = module._parameters, module._buffers, module._modules
        self._non_persistent_buffers_set = module._non_persistent_buffers_set

    @property
    def graph_module(self) -> GraphModule:
        """The graph that runs."""
        return self.__dict__["_graph_module"]

    @property
    def program(self) -> ExportedProgram:
        """The program that the module was made from, for saving; it shares the module's storage."""
        return self.__dict__["_program"]

    @property
    def signature(self) -> inspect.Signature | None:
        """The signature of the model's `forward`, if it is known."""
        return self.__dict__["_signature"]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph.

        Raises:
            InputError: an input has another shape than at capture, where it was not left dynamic, or is one that the
                model was captured without.
        """
        if torch.compiler.is_compiling():
            return self.graph_module(*args, **kwargs)
        if self.signature is not None:
            args, kwargs = as_captured(self.signature, self.program, args, kwargs)
        try:
            return self.graph_module(*args, **kwargs)
        except AssertionError as error:
            if (other := other_shape(self.program, args, kwargs)) is None:
                raise
            why, do = "its graph was captured for inputs of fixed sizes", other.advice()
            if fixed := fixed_sizes(self.program):
                why, do = f"the model's own code fixed a size at capture: {', '.join(fixed)}", "optimize for this size"
            raise InputError(f"the rewritten model does not take these inputs: {other}", why=why, do=do) from error

    def train(self, mode: bool = True) -> OptimizedModule:
        """Set the flag; the graph computes the same either way."""
        for module in self.modules():
            module.training = mode
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> OptimizedModule:
        tensors = [*self.parameters(), *self.buffers()]
        probe = next((tensor for tensor in tensors if tensor.is_floating_point() and tensor.dim()), None)
        if probe is not None and fn(probe.detach()[:1]).dtype != probe.dtype:
            raise RewriteError(
                "the dtype of a rewritten model cannot be changed",
                why=f"its casts were captured for {probe.dtype}",
                do="call .to(dtype) on the original model, then jetvit.optimize",
            )
        if probe is None or (device := fn(probe.detach()[:1]).device) == probe.device:
            super()._apply(fn, recurse)
        else:
            self._adopt(move_to_device_pass(self.program, device))  # devices stand in the graph's nodes as well
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> OptimizedModule:
        return OptimizedModule(copy.deepcopy(self.program), self.signature)
