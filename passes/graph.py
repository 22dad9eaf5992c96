"""Captured graphs that passes may change: one class a road, one way to add a tensor and to put nodes in.

A pass never touches the user's module or program: an `ExportedGraph` works on a copy of the graph and shares the tensors.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from jetvit.patterns.captured import CapturedGraph
from jetvit.patterns.regions import REGION_OPERANDS, GraphView
from jetvit.patterns.sizes import is_static


class RewritableGraph(CapturedGraph):
    """A captured graph with the few edits that passes need.

    Attributes:
        owns_weights: True if the values of parameters and buffers belong to this graph, so that what is computed from
            them may be folded. False on the Dynamo road, where one graph serves every instance of a class.
    """

    owns_weights: bool

    def tensor(self, node: Node) -> torch.Tensor | None:
        """The value of a parameter, buffer or constant, where the graph owns it."""
        raise NotImplementedError

    def add_tensor(self, name: str, tensor: torch.Tensor) -> Node:
        """A new parameter or constant under an FQN; returns the node that stands for it."""
        raise NotImplementedError

    @property
    def fake_mode(self) -> FakeTensorMode:
        """The mode that the graph's shapes live in."""
        values = [node.meta.get("val") for node in self.module.graph.nodes if node.op == "placeholder"]
        mode = detect_fake_mode([value for value in values if isinstance(value, torch.Tensor)])
        return mode if mode is not None else FakeTensorMode(allow_non_fake_inputs=True)

    def node_of(self, name: str) -> Node | None:
        """The node that stands for the tensor of an FQN."""
        return next((node for node, known in self.tensor_names.items() if known == name), None)

    def fake(self, tensor: torch.Tensor) -> torch.Tensor:
        """The shape, dtype and device of a tensor, without its values."""
        return self.fake_mode.from_tensor(tensor.detach(), static_shapes=True)


class ExportedGraph(RewritableGraph):
    """The graph of an ExportedProgram. The program is never changed; `program()` gives a new one that shares tensors."""

    owns_weights = True

    def __init__(self, program: ExportedProgram):
        self._original = program
        self._state = dict(program.state_dict)
        self._constants = dict(program.constants)
        module = copy.deepcopy(program.graph_module)
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        self._specs = dict(zip(placeholders, program.graph_signature.input_specs, strict=True))
        names = {node: spec.target for node, spec in self._specs.items() if _is_tensor_spec(spec)}
        super().__init__(module, names)  # type: ignore[arg-type]

    def tensor(self, node: Node) -> torch.Tensor | None:
        name = self.tensor_names.get(node)
        if name is None:
            return None
        value = self._state.get(name, self._constants.get(name))
        return value if isinstance(value, torch.Tensor) else None

    def add_tensor(self, name: str, tensor: torch.Tensor) -> Node:
        graph = self.module.graph
        first = next(node for node in graph.nodes if node not in self._specs or not _is_tensor_spec(self._specs[node]))
        with graph.inserting_before(first):
            node = graph.placeholder("p_" + name.replace(".", "_"))
        node.meta["val"] = self.fake(tensor)
        self._state[name] = tensor
        self.tensor_names[node] = name  # type: ignore[index]
        trained = isinstance(tensor, torch.nn.Parameter)
        kind = InputKind.PARAMETER if trained else InputKind.BUFFER
        self._specs[node] = InputSpec(kind, TensorArgument(node.name), name, persistent=None if trained else True)
        return node

    def program(self) -> ExportedProgram:
        """The graph as an ExportedProgram, validated. Tensors that no node reads any more are left out."""
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
            module_call_graph=copy.deepcopy(self._original.module_call_graph),
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
            spec.target: spec.arg.name
            for spec in self._original.graph_signature.input_specs
            if spec.target is not None
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
        values: the values of parameters and buffers where the user froze them (`options={"freeze": True}`), else none.
    """

    def __init__(
        self,
        module: GraphModule,
        tensor_names: dict[Node, str],
        ambient_autocast: Mapping[str, torch.dtype],
        values: Mapping[Node, torch.Tensor] | None = None,
    ):
        super().__init__(module, tensor_names, ambient_autocast)
        self._values = dict(values or {})
        self.owns_weights = values is not None

    def tensor(self, node: Node) -> torch.Tensor | None:
        if node.op == "get_attr":
            return operator.attrgetter(node.target)(self.module)
        return self._values.get(node)

    def add_tensor(self, name: str, tensor: torch.Tensor) -> Node:
        attribute = "jetvit_" + name.replace(".", "_").replace("#", "_")
        self.module.register_buffer(attribute, tensor)
        graph = self.module.graph
        first = next(node for node in graph.nodes if node.op not in ("placeholder", "get_attr"))
        with graph.inserting_before(first):
            node = graph.get_attr(attribute)
        node.meta["val"] = self.fake(tensor)
        self.tensor_names[node] = name  # type: ignore[index]
        return node


def _is_tensor_spec(spec: InputSpec) -> bool:
    return spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


class Insertion:
    """New nodes at one place of a graph, each with its shape and with the module stack of the node that it stands for.

    Args:
        graph: the graph to change.
        anchor: new nodes go before this one and take over where it came from.
        view: a view of the graph as it was, to bring values into regions.
    """

    def __init__(self, graph: RewritableGraph, anchor: Node, view: GraphView):
        self.graph, self.anchor, self.view = graph, anchor, view
        self._mode = graph.fake_mode

    def call(self, target: Callable[..., Any], *args: Any) -> Node:
        """A call before the anchor, with `val` computed on fake tensors."""
        owner = self.anchor.graph
        with owner.inserting_before(self.anchor):
            node = owner.call_function(target, args)
        values = pytree.tree_map_only(Node, lambda each: each.meta["val"], args)
        with self._mode, torch.no_grad():
            node.meta["val"] = target(*values)
        for key in ("nn_module_stack", "stack_trace", "source_fn_stack", "custom"):
            if key in self.anchor.meta:
                node.meta[key] = self.anchor.meta[key]
        return node

    def bring(self, node: Node) -> Node:
        """A value from outside into the region that the anchor stands in, threaded through the region's operands."""
        return bring_into(self.view, node, self.anchor.graph)

    def size(self, size: int | torch.SymInt) -> int | Node:
        """A size as an argument: an int, or a node that computes it from the inputs' shapes."""
        if is_static(size):
            return int(size)
        from jetvit.passes.symbols import size_node

        return self.bring(size_node(self.graph, size))

    def replace(self, old: Node, new: Node) -> None:
        """Let every user of one node read another. The dead nodes stay for the clean-up."""
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def bring_into(view: GraphView, node: Node, graph: Graph) -> Node:
    """The node of a value inside a graph: itself, a region's placeholder for it, or a new operand of the region."""
    node = view.resolve(node)
    if node.graph is graph:
        return node
    for placeholder in graph.nodes:
        if placeholder.op == "placeholder" and view.resolve(placeholder) is node:
            return placeholder
    call = view.entrances[graph]
    outer = bring_into(view, node, call.graph)
    last = [each for each in graph.nodes if each.op == "placeholder"][-1]
    with graph.inserting_after(last):
        placeholder = graph.placeholder(f"{node.name}_in")
    placeholder.meta = {key: value for key, value in node.meta.items() if key in ("val", "tensor_meta")}
    call.args = (*call.args, outer)
    _move_before(call, outer)
    view.bind(placeholder, outer)
    return placeholder


def _move_before(call: Node, value: Node) -> None:
    """A region's operand has to stand before the region: sizes that were made late are moved up."""
    order = {node: index for index, node in enumerate(call.graph.nodes)}
    if order[value] > order[call]:
        call.prepend(value)


def graphs(module: GraphModule) -> Iterable[GraphModule]:
    """A graph module and those of its regions."""
    yield module
    for node in module.graph.nodes:
        if node.op == "call_function" and node.target in REGION_OPERANDS:
            attribute = node.args[REGION_OPERANDS[node.target] - 1]
            yield from graphs(module.get_submodule(attribute.target))
