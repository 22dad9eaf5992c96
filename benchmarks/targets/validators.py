"""The conditions of Torch-TensorRT's converters, written anew: does the converter take this node?

Each function is named after the validator whose condition it is, answers with the reason for a refusal or None, and
holds for TensorRT itself, not for TensorRT-RTX. A validator that is not here is not known, and whoever asks is told so.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx import Node

from jetvit.patterns.operator_args import sdpa_arguments

MAX_RANK = 8
MAX_TOPK = 3840
_CASTS = {
    *(torch.float32, torch.int32, torch.int64, torch.bool, torch.int8, torch.float16, torch.bfloat16),
}


def has_dynamic_sizes(node: Node) -> bool:
    """True if a node or one of its direct operands has a symbolic size, or is a symbolic number."""
    operands = [each for each in (*node.args, *node.kwargs.values()) if isinstance(each, Node)]
    return any(_is_dynamic(each) for each in (node, *operands))


def _is_dynamic(node: Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return any(
        isinstance(each, torch.SymInt | torch.SymFloat | torch.SymBool)
        or (isinstance(each, Tensor) and any(isinstance(size, SymInt) for size in each.shape))
        for each in values
    )


def _argument(node: Node, position: int, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else default


def one_user(node: Node) -> str | None:
    users = list(node.users)
    first = len(users) == 1 and users[0].target is operator.getitem and users[0].args[1] == 0
    return None if first else "more of its results are read than the first"


def cat(node: Node) -> str | None:
    values = [each.meta["val"] for each in node.args[0]]
    ranks = {value.dim() for value in values}
    empty = any(value.dim() == 1 and value.shape[0] == 0 for value in values)
    return "it joins an empty vector with tensors of more axes" if len(ranks) > 1 and empty else None


def integer_index(node: Node) -> str | None:
    kinds = [index.meta["val"].dtype for index in node.args[1] if isinstance(index, Node)]
    wrong = [kind for kind in kinds if kind not in (torch.int32, torch.int64)]
    return f"an index is {wrong[0]}" if wrong else None


def any_index(node: Node) -> str | None:
    kinds = [index.meta["val"].dtype for index in node.args[1] if isinstance(index, Node)]
    wrong = [kind for kind in kinds if kind not in (torch.int32, torch.int64, torch.bool)]
    return f"an index is {wrong[0]}" if wrong else None


def boolean_index(node: Node) -> str | None:
    indices = [index for index in node.args[1] if isinstance(index, Node)]
    boolean = any(index.meta["val"].dtype == torch.bool for index in indices)
    return any_index(node) if boolean else "no index is boolean"


def plain_index_put(node: Node) -> str | None:
    return "it accumulates" if _argument(node, 3, False) else any_index(node)


def static_split(node: Node) -> str | None:
    """Beside the validator's own condition: the converter computes with the sizes, which then must be numbers."""
    sizes = node.args[1] if isinstance(node.args[1], list | tuple) else [node.args[1]]
    return "the sizes that it splits into are open" if any(isinstance(size, Node) for size in sizes) else None


def cast(node: Node) -> str | None:
    dtype = node.kwargs.get("dtype")
    if dtype is None:
        return "it copies without a dtype"
    return None if dtype in _CASTS else f"it casts to {dtype}"


def only_on_placeholder(node: Node) -> str | None:
    inputs = any(isinstance(each, Node) and each.op == "placeholder" for each in node.args)
    output = any(user.op == "output" for user in node.users)
    return None if inputs and output else "it is not all that happens to an input"


def not_only_on_placeholder(node: Node) -> str | None:
    return None if only_on_placeholder(node) else "it is all that happens to an input"


def boolean_bits(node: Node) -> str | None:
    for each in node.args[:2]:
        boolean = isinstance(each, bool) or (isinstance(each, Node) and each.meta["val"].dtype == torch.bool)
        # The validator reads the dtype there, and refuses where it is not recorded.
        if not boolean or (isinstance(each, Node) and "tensor_meta" not in each.meta):
            return "an operand is not boolean"
    return None


def sdpa(node: Node) -> str | None:
    arguments = sdpa_arguments(node)
    q, k, v = (each.meta["val"].shape for each in (arguments.query, arguments.key, arguments.value))
    if arguments.is_causal and arguments.attn_mask is not None:
        return "it is causal and has a mask"
    if arguments.enable_gqa:
        return "grouped queries are not looked at here"
    if not len(q) == len(k) == len(v):
        return "q, k and v have other numbers of axes"
    if k != v:
        return f"k is {list(k)} and v is {list(v)}"
    if any(q[axis] != k[axis] for axis in range(len(q)) if axis != len(q) - 2):
        return f"q is {list(q)} and k is {list(k)}"
    return None


def repeat(node: Node) -> str | None:
    return f"it has more than {MAX_RANK} axes" if node.meta["val"].dim() > MAX_RANK else None


def full_size(node: Node) -> str | None:
    return "an axis has length 0" if 0 in node.args[1] else None


def few_of_many(node: Node) -> str | None:
    count = node.args[1]
    if not isinstance(count, int):
        return "how many it takes is open"
    return f"it takes {count}, more than {MAX_TOPK}" if count > MAX_TOPK else None


def plain_pooling(node: Node) -> str | None:
    if _argument(node, 4, False) is not False:
        return "its output is rounded up (ceil_mode)"
    return "its divisor is given" if _argument(node, 6) is not None else None


def always(node: Node) -> str | None:
    return None


VALIDATORS: dict[str, Callable[[Node], str | None]] = {
    "one_user_validator": one_user,
    "cat_validator": cat,
    "index_dtype_validator, not index_has_bool_indices": integer_index,
    "index_dtype_validator, index_nonbool_validator, index_has_bool_indices": boolean_index,
    "index_dtype_validator, index_nonbool_validator, not args_bounds_check": plain_index_put,
    "has_static_shapes_in_args([1])": static_split,
    "to_copy_dtype_validator(placeholder_only=False)": lambda node: cast(node) or not_only_on_placeholder(node),
    "to_copy_dtype_validator(placeholder_only=True)": lambda node: cast(node) or only_on_placeholder(node),
    "is_only_operator_on_placeholder": only_on_placeholder,
    "not is_only_operator_on_placeholder": not_only_on_placeholder,
    "bitwise_type_validator": boolean_bits,
    "convolution_capability_validator": always,
    "cumsum_validator": always,
    "scaled_dot_product_attention_validator": sdpa,
    "repeat_validator": repeat,
    "topk_validator": few_of_many,
    "avg_pool_param_validator": plain_pooling,
    "zero_output_validator": full_size,
}
"""By the names in `converters.json`. Two conditions are those of TensorRT-RTX alone, and always hold here."""
