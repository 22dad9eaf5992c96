"""Register a function as an operator of `torch.ops.jetvit`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.library import CustomOpDef, triton_op

from jetvit.kernels.autocast import without_autocast
from jetvit.torch_private import without_kernel_search

Function = TypeVar("Function", bound=Callable[..., Tensor])


def operator(
    name: str, *, check: Callable[..., None], reference: Callable[..., Tensor]
) -> Callable[[Function], Function]:
    """Register the decorated function as the operator `name`; what comes back calls the operator.

    `check` and `reference` take the operator's arguments. `check` raises ValueError for wrong ones, also while a graph
    is traced; `reference` gives the gradients. The output is a contiguous tensor of the first argument's shape and
    dtype. Export keeps the operator as one node, Inductor traces the function.
    """

    def fake(*args: Any) -> Tensor:
        # `triton_op` would trace the function here: the guards of its reshapes would narrow the sizes of an export.
        check(*args)
        return torch.empty(args[0].shape, dtype=args[0].dtype, device=args[0].device)

    def register(function: Function) -> Function:
        with without_kernel_search():
            op = cast(CustomOpDef, triton_op(name, function, mutates_args=()))
        op.register_fake(fake)
        _register_gradient(op, reference)
        return cast(Function, functools.update_wrapper(op, function))

    return register


def _register_gradient(op: CustomOpDef, reference: Callable[..., Tensor]) -> None:
    """Give `op` the gradients of `reference` by autograd, recomputed in the backward from the inputs alone.

    They can be differentiated again where the operations of `reference` can. Forward mode is not there: custom
    operators of torch have none, and drop tangents.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.options = inputs[len(tensors) :]

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: activation checkpointing recomputes them at each reading
        wanted = ctx.needs_input_grad[: len(saved)]
        again = torch.is_grad_enabled()  # the caller asked for create_graph
        with without_autocast(grad.device), torch.enable_grad():
            # Tensors of their own even where q, k and v are one tensor; views keep the history that `again` needs.
            own = [
                x.view_as(x) if again and w else x.detach().requires_grad_(w)
                for x, w in zip(saved, wanted, strict=True)
            ]
            out = reference(*own, *ctx.options)
            inputs = [x for x, w in zip(own, wanted, strict=True) if w]
            found = iter(torch.autograd.grad(out, inputs, grad, allow_unused=True, create_graph=again))
        return *(next(found) if w else None for w in wanted), *(None for _ in ctx.options)

    op.register_autograd(backward, setup_context=setup_context)
