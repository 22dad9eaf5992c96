"""Captured graphs that passes may change: one class a frontend, one way to add a tensor and to insert nodes.

A pass never touches the user's module or program: an `ExportedGraph` works on a copy of the graph and shares its
tensors.
"""

from __future__ import annotations

import copy
import itertools
import operator
import re
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import GraphModule, Node

from jetvit.passes.graph.fresh_constants import spell_out_constants
from jetvit.passes.graph.regions import submodules
from jetvit.patterns.captured import CapturedGraph
from jetvit.patterns.find import find_sites
from jetvit.patterns.site import Sites
from jetvit.torch_private import FakeTensorMode, detect_fake_mode, enable_python_dispatcher, pytree


class RewritableGraph(CapturedGraph):
    """A captured graph with the few edits that passes need.

    Attributes:
        owns_weights: True if the values of parameters and buffers belong to this graph, so that what is computed from
            them may be folded. False in the Dynamo frontend, where one graph serves every instance of a class.
    """

    owns_weights: bool
    _sites: Sites | None = None
    _read_at: tuple[Any, list[Any]] = (None, [])

    def sites(self) -> Sites:
        """Find the attention of the graph as it is now; an unchanged graph is not searched again."""
        calls = [part for node in _all_nodes(self.module) for part in (node, node.target, node.args, node.kwargs)]
        known, seen = self._read_at
        same = known is self.known and len(seen) == len(calls) and all(map(operator.is_, seen, calls))
        if self._sites is None or not same:
            self._sites, self._read_at = find_sites(self), (self.known, calls)
        return self._sites

    def tensor(self, node: Node) -> torch.Tensor | None:
        """The value of a parameter, buffer or constant, where the graph owns it."""
        raise NotImplementedError

    def add_tensor(self, name: str, tensor: torch.Tensor) -> Node:
        """A new parameter or constant under an FQN, numbered if that is taken; returns the node that stands for it."""
        raise NotImplementedError

    @property
    def fake_mode(self) -> FakeTensorMode:
        """The mode that the graph's shapes live in."""
        values = [node.meta.get("val") for node in self.module.graph.nodes if node.op == "placeholder"]
        mode = detect_fake_mode([value for value in values if isinstance(value, torch.Tensor)])
        return mode if mode is not None else FakeTensorMode(allow_non_fake_inputs=True)

    def replace_tensor(self, node: Node, tensor: torch.Tensor) -> None:
        """Other values for a parameter or buffer, of the same shape; the caller's model keeps its own."""
        raise NotImplementedError

    def node_of(self, name: str) -> Node | None:
        """The node that stands for the tensor of an FQN."""
        return next((node for node, known in self.tensor_names.items() if known == name), None)

    def values(self) -> dict[str, torch.Tensor]:
        """The values of parameters and buffers by FQN, as far as they are known, for comparison with a plan's."""
        raise NotImplementedError

    def fake(self, tensor: torch.Tensor) -> torch.Tensor:
        """The shape, dtype and device of a tensor, without its values."""
        return self.fake_mode.from_tensor(tensor.detach(), static_shapes=True)


def _all_nodes(module: GraphModule) -> Iterator[Node]:
    """The nodes of a graph and of its regions; a call that is edited gets other `args` or `kwargs`."""
    for each in submodules(module):
        yield from each.graph.nodes


@contextmanager
def on_fake_tensors(mode: FakeTensorMode) -> Iterator[None]:
    """Run operators on the shapes of a graph, symbolic ones too, without a guard on their symbols."""
    shapes = mode.shape_env
    with mode, enable_python_dispatcher(), torch.no_grad(), shapes.suppress_guards() if shapes else nullcontext():
        yield


class ExportedGraph(RewritableGraph):
    """The graph of an ExportedProgram, which is never changed: `program()` gives a new one that shares its tensors."""

    owns_weights = True

    def __init__(self, program: ExportedProgram):
        self._original = program
        self._state = dict(program.state_dict)
        self._constants = dict(program.constants)
        module = copy.deepcopy(program.graph_module)
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        specs = zip(placeholders, program.graph_signature.input_specs, strict=True)
        self._specs: dict[Any, InputSpec] = {node: _called(spec, node.name) for node, spec in specs}
        names: dict[Any, Any] = {node: spec.target for node, spec in self._specs.items() if _is_tensor_spec(spec)}
        super().__init__(module, names)
        constants = [node for node, spec in self._specs.items() if spec.kind is InputKind.CONSTANT_TENSOR]
        values = {node: self.tensor(node) for node in constants}
        spell_out_constants(module, {node: value for node, value in values.items() if value is not None})

    def tensor(self, node: Node) -> torch.Tensor | None:
        name = self.tensor_names.get(node)
        if name is None:
            return None
        value = self._state.get(name, self._constants.get(name))
        return value if isinstance(value, torch.Tensor) else None

    def add_tensor(self, name: str, tensor: torch.Tensor) -> Node:
        graph = self.module.graph
        name = free_name(name, {*self._state, *self._constants})
        trained = isinstance(tensor, torch.nn.Parameter)
        first = next(node for node in graph.nodes if node not in self._specs or not _is_tensor_spec(self._specs[node]))
        with graph.inserting_before(first):
            identifier = ("p_" if trained else "b_") + re.sub(r"\W", "_", name)
            node = graph.placeholder(free_name(identifier, {str(node.target) for node in self._specs}))
        node.meta["val"] = self.fake(tensor)
        self._state[name] = tensor
        self.tensor_names[node] = name  # type: ignore[index]
        kind = InputKind.PARAMETER if trained else InputKind.BUFFER
        self._specs[node] = InputSpec(kind, TensorArgument(node.name), name, persistent=None if trained else True)
        return node

    def replace_tensor(self, node: Node, tensor: torch.Tensor) -> None:
        self._state[self.tensor_names[node]] = tensor

    def values(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self._state.items() if isinstance(value, torch.Tensor)}

    def program(self) -> ExportedProgram:
        """The graph as an ExportedProgram, validated, to which the graph belongs from then on.

        Tensors that no node reads any more are left out.
        """
        graph = self.module.graph
        for node in [node for node in graph.nodes if node.op == "placeholder"]:
            if not node.users and _is_tensor_spec(self._specs[node]) and self._droppable(node):
                del self._specs[node]
                graph.erase_node(node)
        self.module.recompile()
        order = [node for node in graph.nodes if node.op == "placeholder"]
        signature = copy.copy(self._original.graph_signature)
        signature.input_specs = [self._specs[node] for node in order]
        signature.output_specs = [copy.copy(spec) for spec in self._original.graph_signature.output_specs]
        results = pytree.tree_leaves(graph.output_node().args[0])
        for spec, result in zip(signature.output_specs, results, strict=True):
            if isinstance(result, Node) and isinstance(spec.arg, TensorArgument):
                spec.arg = TensorArgument(result.name)
        kept = {spec.target for spec in signature.input_specs}
        program = ExportedProgram(
            root=self.module,
            graph=graph,
            graph_signature=signature,
            state_dict={name: tensor for name, tensor in self._state.items() if name in kept},
            range_constraints=copy.copy(self._original.range_constraints),
            module_call_graph=list(self._original.module_call_graph),
            example_inputs=self._original.example_inputs,
            constants={
                name: value
                for name, value in self._constants.items()
                if name in kept or not isinstance(value, torch.Tensor)
            },
            verifiers=list(self._original.verifiers),
        )
        program.validate()
        return program

    def _droppable(self, node: Node) -> bool:
        """A tensor that was read before and is not any more; what was never read stays, as in the original program."""
        name = self._specs[node].target
        if any(out.target == name for out in self._original.graph_signature.output_specs):
            return False  # a buffer that the program writes to
        before = {
            spec.target: spec.arg.name for spec in self._original.graph_signature.input_specs if spec.target is not None
        }
        if name not in before:
            return True
        original = next(each for each in self._original.graph.nodes if each.name == before[name])
        return bool(original.users)


class DynamoGraph(RewritableGraph):
    """A graph that Dynamo captured: parameters and buffers are inputs, so their values belong to the caller.

    Args:
        module: the ATen graph.
        tensor_names: placeholder or attribute → FQN.
        ambient_autocast: device type → dtype of the autocast regions that were open around the call.
        inputs: the present values of the parameters and buffers among the placeholders.
        freeze: these values are for good, and may be folded.
    """

    def __init__(
        self,
        module: GraphModule,
        tensor_names: dict[Node, str],
        ambient_autocast: Mapping[str, torch.dtype],
        inputs: Mapping[Node, torch.Tensor],
        freeze: bool = False,
    ):
        super().__init__(module, tensor_names, ambient_autocast)
        self.inputs = dict(inputs)
        self.owns_weights = freeze
        constants = [node for node in tensor_names if node.op == "get_attr"]
        spell_out_constants(module, {node: operator.attrgetter(str(node.target))(module) for node in constants})

    def tensor(self, node: Node) -> torch.Tensor | None:
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.module)
        return self.inputs.get(node) if self.owns_weights else None

    def add_tensor(self, name: str, tensor: torch.Tensor) -> Node:
        attribute = free_name("jetvit_" + re.sub(r"\W", "_", name), set(dir(self.module)))
        self.module.register_buffer(attribute, tensor)
        graph = self.module.graph
        first = next(node for node in graph.nodes if node.op not in ("placeholder", "get_attr"))
        with graph.inserting_before(first):
            node = graph.get_attr(attribute)
        node.meta["val"] = self.fake(tensor)
        self.tensor_names[node] = name  # type: ignore[index]
        return node

    def replace_tensor(self, node: Node, tensor: torch.Tensor) -> None:
        node.replace_all_uses_with(self.add_tensor(self.tensor_names[node], tensor))

    def values(self) -> dict[str, torch.Tensor]:
        return {self.tensor_names[node]: value for node, value in self.inputs.items()}


def free_name(name: str, taken: Container[str], first: int = 1) -> str:
    """The name, with a number from `first` on where it is taken."""
    numbered = (f"{name}_{number}" for number in itertools.count(first))
    return name if name not in taken else next(each for each in numbered if each not in taken)


def _called(spec: InputSpec, name: str) -> InputSpec:
    """A spec for a placeholder of this name: a copied graph has no "input", which is a name of Python's own."""
    if getattr(spec.arg, "name", name) == name:
        return spec
    return replace(spec, arg=replace(spec.arg, name=name))


def _is_tensor_spec(spec: InputSpec) -> bool:
    return spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
