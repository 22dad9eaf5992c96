"""The constants of an ONNX graph as parameters and buffers under the names that they had in the original model.

Exporters store the weight of a linear layer transposed, and under a name of their own. Here it is [out, in] again, and
its name comes from the bias beside it or from the module that reads it, so that a plan made on the original model fits.
"""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from jetvit.passes.frontends.onnx import scopes
from jetvit.passes.frontends.onnx.values import DTYPES, MAX_KNOWN, MAX_READ, MICROSOFT, Known, UnsupportedError, known
from jetvit.torch_private import disable_current_modes

if TYPE_CHECKING:
    import onnx_ir as ir


class Scope(nn.Module):
    """A module of the original model: it holds tensors, and what was made in it is run in its name."""

    def forward(self, run: Any) -> Any:
        return run()


@dataclass(frozen=True)
class Linear:
    """A product with a constant matrix, and the bias that is added to it.

    Attributes:
        weight: the constant.
        is_out_in: True if it is stored as [out, in], as PyTorch has it.
        bias: a constant of [out], or None.
        end: the node that yields the result: the product, or the addition of the bias.
    """

    weight: ir.Value
    is_out_in: bool
    bias: ir.Value | None
    end: ir.Node


class Weights:
    """The constants of a graph.

    Args:
        graph: the graph, whose nodes `scopes.mark` has marked.
        root: the module that parameters and buffers are put in.

    Attributes:
        linears: products with a constant matrix, by their node.
        biases: the additions that are part of such a product, by their node.
    """

    def __init__(self, graph: ir.Graph, root: nn.Module):
        self.root = root
        self.linears: dict[ir.Node, Linear] = {}
        self._names: dict[ir.Value, str] = {}
        self._turned: set[ir.Value] = set()
        self._taken: dict[str, Tensor] = {}
        self._tensors: dict[ir.Value, str] = {}
        self._numbers: dict[ir.Value, Known] = {}
        self._uniform: dict[ir.Value, Any] = {}
        self._folded: dict[tuple[torch.dtype, torch.Size], list[str]] = {}
        self._signature = scopes.parameters(graph)
        self._own = {name for name, value in graph.initializers.items() if not self.is_made_up(value)}
        for node in graph.all_nodes():
            if (linear := _linear(node)) is not None:
                self.linears[node] = linear
        self.biases = {each.end: node for node, each in self.linears.items() if each.end is not node}
        for node, linear in self.linears.items():
            if (name := self._weight_name(node, linear)) is not None:
                self._names.setdefault(linear.weight, name)
        for node, linear in self.linears.items():
            if linear.weight not in self._names:
                self._names[linear.weight] = self._left_name(node, linear)
            head, found, tail = self._names[linear.weight].rpartition("weight")
            bias = f"{head}bias{tail}"
            if found and linear.bias is not None and self.is_made_up(linear.bias) and self._may_be(bias):
                self._names.setdefault(linear.bias, bias)
            if not linear.is_out_in:
                self._turned.add(linear.weight)
        for linear in self.linears.values():
            if linear.is_out_in:  # read as it is by another: it stays as it is
                self._turned.discard(linear.weight)

    def is_made_up(self, value: ir.Value) -> bool:
        """True if a constant's name is no FQN of the original model."""
        if self._signature:
            return value.name not in self._signature
        return scopes.is_made_up(value.name) or value.producer() is not None

    def is_turned(self, value: ir.Value) -> bool:
        """True if a matrix is kept with its axes swapped."""
        return value in self._turned

    def read_as_stored(self, node: ir.Node) -> tuple[int, ...]:
        """The inputs of a node that it takes with `stored`, and not as a value."""
        return (1, 2) if node in self.linears else ()

    def value(self, value: ir.Value) -> Tensor | Known:
        """A constant: known numbers where there are few, else a tensor.

        A float under the FQN of a module is a tensor even if it is a single number: it is a parameter.
        """
        tensor = value.const_value
        assert tensor is not None
        floating = _dtype(value).is_floating_point
        few = tensor.size <= (1 if floating else MAX_KNOWN)
        if few and not (floating and not self.is_made_up(value) and "." in str(value.name)):
            numbers = self.numbers(value)
            assert numbers is not None
            return numbers
        return self.stored(value).t() if self.is_turned(value) else self.stored(value)

    def numbers(self, value: ir.Value | None) -> Known | None:
        """The numbers of a small constant; None for anything else."""
        if value is None or value.const_value is None or value.const_value.size > MAX_READ:
            return None
        if value not in self._numbers:
            self._numbers[value] = known(np.asarray(value.const_value.numpy()), _dtype(value))
        return self._numbers[value]

    def stored(self, value: ir.Value) -> Tensor:
        """The parameter or buffer of a constant, which is made when it is first read: [out, in] for linear layers."""
        if value in self._uniform:
            return torch.full(to_shape(value), self._uniform[value], dtype=_dtype(value))
        if value not in self._tensors:
            with disable_current_modes():
                tensor = to_torch(value)
                if self._is_filled(value, tensor):
                    self._uniform[value] = tensor.reshape(-1)[0].item()
                    return self.stored(value)
                tensor = tensor.t().contiguous() if self.is_turned(value) else tensor
                self._tensors[value] = self._keep(value, tensor)
        return self.tensor(self._tensors[value])

    def _keep(self, value: ir.Value, tensor: Tensor) -> str:
        """Register the tensor of a constant; returns its FQN.

        An exporter that folds a table which all layers read writes it anew for each of them, and for q and for k, where
        the matcher looks for one table: equal ones are kept once, unless the original model had them itself.
        """
        own = value in self._names or not self.is_made_up(value)
        alike = [] if own else self._folded.setdefault((tensor.dtype, tensor.shape), [])
        for name in alike:
            if torch.equal(self.tensor(name), tensor):
                return name
        alike.append(self._register(self._name(value), tensor, self._is_parameter(value, tensor)))
        return alike[-1]

    def table(self, value: Known) -> Tensor:
        """A constant that was computed while the graph was read."""
        entries = "_".join(str(item) for item in value.list()[:8])
        name = f"constants.{str(value.dtype).removeprefix('torch.')}_{re.sub(r'[^0-9A-Za-z]+', '_', entries)}"
        with disable_current_modes():
            tensor = torch.from_numpy(np.array(value.items, dtype=_NUMPY[value.dtype])).to(value.dtype)
            name = self._register(name, tensor, False)
        return self.tensor(name)

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer by its FQN."""
        path, _, last = name.rpartition(".")
        return getattr(self.root.get_submodule(path), last)

    def scope(self, path: str) -> tuple[nn.Module, str]:
        """The module of an FQN, made where it is missing, and where it is: a part that is taken gets another name."""
        module, parts = self.root, []
        for part in path.split(".") if path else []:
            # Taken by a tensor or by an attribute of nn.Module, or no name that Python code may write.
            while part not in module._modules and (hasattr(module, part) or keyword.iskeyword(part)):
                part += "_"
            if part not in module._modules:
                module.add_module(part, Scope())
            child = module._modules[part]
            assert child is not None
            module = child
            parts.append(part)
        return module, ".".join(parts)

    def _register(self, name: str, tensor: Tensor, is_parameter: bool) -> str:
        """Put a tensor into the modules under a name, numbered if that is taken by another; returns its FQN."""
        base, count = _clean(name), 0
        while True:
            path, _, last = (f"{base}_{count}" if count else base).rpartition(".")
            module, path = self.scope(path)
            fqn = f"{path}.{last}" if path else last
            if fqn in self._taken:
                if _identical(self._taken[fqn], tensor):
                    return fqn
            elif not hasattr(module, last) and not keyword.iskeyword(last):
                break
            count += 1
        if is_parameter:
            module.register_parameter(last, nn.Parameter(tensor))
        else:
            module.register_buffer(last, tensor)
        self._taken[fqn] = tensor
        return fqn

    def _name(self, value: ir.Value) -> str:
        """The name of a constant: its own, or one by the module that reads it."""
        if value in self._names:
            return self._names[value]
        if not self.is_made_up(value):
            return str(value.name)
        path = next((scopes.scope_of(use.node) for use in value.uses()), "")
        return f"{path}.{_last(value)}" if path else f"constants.{_last(value)}"

    def _weight_name(self, node: ir.Node, linear: Linear) -> str | None:
        """The original name of a linear layer's weight, if its own name, its bias or its module shows it."""
        if not self.is_made_up(linear.weight):
            return str(linear.weight.name)
        if linear.bias is not None and not self.is_made_up(linear.bias):
            head, found, tail = str(linear.bias.name).rpartition("bias")
            if found and self._may_be(f"{head}weight{tail}"):
                return f"{head}weight{tail}"
        scope = scopes.scope_of(node)
        return f"{scope}.weight" if scope and self._may_be(f"{scope}.weight") else None

    def _left_name(self, node: ir.Node, linear: Linear) -> str:
        """The only weight inside the module that the original model had and no layer here has; else a new name."""
        scope = scopes.scope_of(node)
        if not scope:
            return f"constants.{_last(linear.weight)}"
        used = self._own | set(self._names.values())
        left = [name for name in self._signature - used if name.startswith(f"{scope}.") and name.endswith("weight")]
        return left[0] if len(left) == 1 else f"{scope}.weight"

    def _may_be(self, name: str) -> bool:
        return not self._signature or name in self._signature

    def _is_parameter(self, value: ir.Value, tensor: Tensor) -> bool:
        kind = value.metadata_props.get(scopes.KIND)
        if kind is not None:
            return kind == "PARAMETER" and tensor.is_floating_point()
        own = value in self._names or not self.is_made_up(value)
        running = str(value.name).endswith(("running_mean", "running_var", "num_batches_tracked"))
        return tensor.is_floating_point() and own and not running

    def _is_filled(self, value: ir.Value, tensor: Tensor) -> bool:
        """True of a table that the exporter folded and that holds one number, such as a mask that hides nothing."""
        if tensor.ndim < 2 or tensor.numel() == 0:
            return False
        # No weight is made of truth values, whatever its name: the exporter may call a mask after a node of its own.
        if tensor.dtype is not torch.bool and (value in self._names or not self.is_made_up(value)):
            return False
        return bool((tensor == tensor.reshape(-1)[0]).all())


_NUMPY = {torch.bool: np.bool_, torch.float32: np.float64, torch.float16: np.float64, torch.bfloat16: np.float64,
          torch.float64: np.float64} | dict.fromkeys((torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32,
                                                      torch.int64, torch.uint32), np.int64) | {
              torch.uint64: np.uint64}  # fmt: skip


def to_torch(value: ir.Value) -> Tensor:
    """The tensor of a constant.

    Raises:
        UnsupportedError: its type is none of PyTorch's.
    """
    tensor = value.const_value
    assert tensor is not None
    dtype = _dtype(value)
    data = np.array(tensor.numpy(), copy=True)
    if dtype is torch.bfloat16:
        return torch.from_numpy(data.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(data)


def to_shape(value: ir.Value) -> tuple[int, ...]:
    """The shape of a constant."""
    assert value.const_value is not None
    return tuple(int(size) for size in value.const_value.shape.numpy())


def _dtype(value: ir.Value) -> torch.dtype:
    assert value.const_value is not None
    dtype = DTYPES.get(int(value.const_value.dtype))
    if dtype is None:
        raise UnsupportedError(f"the constant {value.name} is of type {value.const_value.dtype}")
    return dtype


def _linear(node: ir.Node) -> Linear | None:
    """A product with a constant matrix on the right, with the bias that alone reads it."""
    packed = node.domain == MICROSOFT and node.op_type == "Attention"
    if not packed and (node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm")):
        return None
    found = _matrix(node.inputs[1])
    if found is None:
        return None
    weight, swapped = found
    if packed:
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return Linear(weight, swapped, bias, node) if bias is None or _is_bias(bias, weight, swapped) else None
    if node.op_type == "Gemm":
        options = {name: attribute.value for name, attribute in node.attributes.items()}
        if options.get("transA", 0) or options.get("alpha", 1.0) != 1.0 or options.get("beta", 1.0) != 1.0:
            return None
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        out_in = bool(options.get("transB", 0)) != swapped
        if bias is not None and not _is_bias(bias, weight, out_in):
            return None
        return Linear(weight, out_in, bias, node)
    users = list(node.outputs[0].uses())
    if len(users) == 1 and not node.outputs[0].is_graph_output() and users[0].node.op_type == "Add":
        (other,) = [each for each in users[0].node.inputs if each is not node.outputs[0]] or [None]
        if other is not None and _is_bias(other, weight, swapped):
            return Linear(weight, swapped, other, users[0].node)
    return Linear(weight, swapped, None, node)


def _matrix(value: ir.Value | None) -> tuple[ir.Value, bool] | None:
    """A constant matrix of floats, and whether a Transpose swaps its axes."""
    swapped = False
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Transpose" and producer.domain in ("", "ai.onnx"):
        perm = producer.attributes.get("perm")  # left out: all axes in reverse; [0, 1] changes nothing
        value, swapped = producer.inputs[0], perm is None or list(perm.value) == [1, 0]
    if value is None or value.const_value is None or len(to_shape(value)) != 2:
        return None
    return (value, swapped) if _dtype(value).is_floating_point else None


def _is_bias(value: ir.Value, weight: ir.Value, out_in: bool) -> bool:
    return value.const_value is not None and to_shape(value) == (to_shape(weight)[0 if out_in else 1],)


def _identical(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def _clean(name: str) -> str:
    """A name as parts of letters, digits and underscores, joined by dots."""
    parts = [re.sub(r"\W+", "_", part).strip("_") or "_" for part in re.split(r"[./]+", name.strip("./")) if part]
    return ".".join(parts) or "constant"


def _last(value: ir.Value) -> str:
    """The end of a made-up name, without dots."""
    return re.sub(r"\W+", "_", re.split(r"[./]+", str(value.name or "constant").rstrip("/"))[-1]).strip("_")
