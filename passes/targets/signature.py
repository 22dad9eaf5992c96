"""The signature of a written file: the names of its inputs, the tensors that it takes, the nesting of its outputs.

It is data, and travels inside the file where the format has no such description itself: in the metadata_props of an
ONNX model, and in an extra record of an AOTInductor package. `jetvit.load` checks every call against it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from jetvit.passes.targets.signature_axes import axis_of, size_multiples, with_names
from jetvit.passes.targets.signature_checks import check
from jetvit.passes.targets.signature_inputs import ConstantInput, TensorInput, axis_text, input_from_data, least_size
from jetvit.passes.targets.signature_trees import (
    build_tree,
    match_tree,
    plain_tree,
    tree_from_data,
    tree_leaves,
    tree_to_data,
)
from jetvit.passes.targets.strides import dense, order_of
from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted
from jetvit.torch_private import pytree

KEY = "jetvit.signature"
"""The key of the signature in an ONNX file's metadata_props."""
VERSION = 1


@dataclass(frozen=True)
class Bound:
    """The arguments of a call, checked: as the original takes them, and all leaves in order."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    leaves: list[Any]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors in order."""
        return [each for each in self.leaves if isinstance(each, Tensor)]


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a file.

    Attributes:
        inputs: the leaves of the arguments, in order.
        args, kwargs: the arguments by name, each a tree of dicts, lists and tuples whose leaves are places in `inputs`.
        outputs: a tree whose leaves are places among the tensors that the file gives, or None.
    """

    inputs: tuple[TensorInput | ConstantInput, ...]
    args: tuple[tuple[str, Any], ...]
    kwargs: tuple[tuple[str, Any], ...]
    outputs: Any

    @classmethod
    def of(cls, program: ExportedProgram) -> Signature:
        """The signature of a program whose outputs are plain."""
        placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
        specs = [spec for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
        args, kwargs = pytree.tree_unflatten(list(range(len(specs))), program.call_spec.in_spec)
        called = getattr(program.module_call_graph[0].signature, "forward_arg_names", None) or []
        names = [called[index] if index < len(called) else f"input_{index}" for index in range(len(args))]
        read = program.graph_module.meta.get("onnx_input_names")  # of the file that the program was read from
        if read is not None and len(read) == len(names):
            names = list(read)
        leaf_names = {place: path for name, tree in [*zip(names, args, strict=True), *kwargs.items()]
                      for place, path in tree_leaves(tree, name)}  # fmt: skip
        examples = pytree.tree_leaves(program.example_inputs) if program.example_inputs is not None else []
        multiples = size_multiples(program)
        inputs: list[TensorInput | ConstantInput] = []
        for place, spec in enumerate(specs):
            value = placeholders[spec.arg.name].meta.get("val") if spec.arg.name in placeholders else None
            name = leaf_names.get(place, spec.arg.name)
            example = examples[place] if len(examples) == len(specs) else None
            if not isinstance(value, Tensor):
                is_open = not isinstance(spec.arg, ConstantArgument)  # a number that the graph computes with
                inputs.append(ConstantInput(name, example if is_open else spec.arg.value, is_open))
                continue
            axes = [axis_of(program, name, axis, size, multiples) for axis, size in enumerate(value.shape)]
            shape, order = (tuple(example.shape), order_of(example)) if isinstance(example, Tensor) else (None, None)
            dtype = str(value.dtype).removeprefix("torch.")
            inputs.append(TensorInput(name, dtype, tuple(axes), value.device.type, shape, order))
        results = [each.arg for each in program.graph_signature.output_specs if each.kind == OutputKind.USER_OUTPUT]
        counter = itertools.count()
        places = [None if isinstance(each, ConstantArgument) else next(counter) for each in results]
        outputs = plain_tree(pytree.tree_unflatten(places, program.call_spec.out_spec))
        trees = [(name, plain_tree(tree)) for name, tree in zip(names, args, strict=True)]
        named = with_names(inputs)
        return cls(tuple(named), tuple(trees), tuple((str(k), plain_tree(v)) for k, v in kwargs.items()), outputs)

    def __str__(self) -> str:
        shown = []
        for each in self.inputs:
            if isinstance(each, TensorInput):
                shown.append(f"{each.name}: {each.dtype} [{', '.join(map(axis_text, each.shape))}]")
        return ", ".join(shown)

    # --- as data ---

    def to_json(self) -> str:
        """As text."""
        inputs = [{"kind": type(each).__name__, **asdict(each)} for each in self.inputs]
        trees = {"args": [[name, tree_to_data(tree)] for name, tree in self.args],
                 "kwargs": [[name, tree_to_data(tree)] for name, tree in self.kwargs]}  # fmt: skip
        return json.dumps({"version": VERSION, "inputs": inputs, **trees, "outputs": tree_to_data(self.outputs)})

    @classmethod
    def from_json(cls, text: str) -> Signature:
        """From text.

        Raises:
            InputError: it is no signature, or one of a later version.
        """
        try:
            data = json.loads(text)
            version = data["version"]
            if version == VERSION:
                inputs = tuple(input_from_data(each) for each in data["inputs"])
                trees = [
                    tuple((str(name), tree_from_data(tree)) for name, tree in data[key]) for key in ("args", "kwargs")
                ]
                return cls(inputs, trees[0], trees[1], tree_from_data(data["outputs"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                "the signature in the file cannot be read",
                why=f"{type(error).__name__}: {error}",
                do="write the file again",
            ) from error
        raise InputError(
            f"the signature in the file has version {version}",
            why=f"this jetvit reads version {VERSION}",
            do="update jetvit, or write the file again",
        )

    # --- calls ---

    def bind(self, file: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Bound:
        """Check the arguments of a call and bring them into the order of the file.

        Args:
            file: the name of the file, for errors.
            args, kwargs: the arguments, as the original model takes them.
        Raises:
            InputError: an argument is missing, unknown, or no tensor that the file takes.
        """
        given = self._by_name(file, args, kwargs)
        values: list[Any] = [None] * len(self.inputs)
        for name, tree in (*self.args, *self.kwargs):
            if name not in given:
                given[name] = build_tree(tree, [getattr(each, "value", None) for each in self.inputs])
            for place, value in match_tree(file, name, tree, given[name]):
                values[place] = value
        sizes: dict[str, tuple[int, str]] = {}
        for each, value in zip(self.inputs, values, strict=True):
            if isinstance(each, TensorInput):
                check(file, each, value, sizes)
            elif not each.is_open and value is not each.value and value != each.value:
                raise InputError(
                    f"{file} does not take {each.name}={value!r}",
                    why=f"it was written with {each.name}={each.value!r}, which is part of its graph",
                    do=f"leave {each.name} out, or write a file with the other value",
                )
        return self._bound(values, given)

    def laid_out(self, bound: Bound) -> Bound:
        """The same arguments, their tensors with the strides that the file was compiled for."""
        pairs = zip(self.inputs, bound.leaves, strict=True)
        leaves = [dense(value, each.order) if isinstance(each, TensorInput) else value for each, value in pairs]
        given = {name: build_tree(tree, leaves) for name, tree in (*self.args, *self.kwargs)}
        return self._bound(leaves, given)

    def _bound(self, leaves: list[Any], given: Mapping[str, Any]) -> Bound:
        return Bound(tuple(given[name] for name, _ in self.args), {k: given[k] for k, _ in self.kwargs}, leaves)

    def build(self, outputs: Sequence[Any]) -> Any:
        """The outputs of the file in the structure of the original's."""
        return build_tree(self.outputs, outputs)

    def examples(self) -> tuple[list[Any], dict[str, Any]]:
        """Arguments of zeros, in the sizes of the example that the file was written with."""
        leaves: list[Any] = []
        for each in self.inputs:
            if isinstance(each, ConstantInput):
                leaves.append(each.value)
                continue
            least = [axis if isinstance(axis, int) else max(least_size(axis), 1) for axis in each.shape]
            shape = each.example if each.example is not None else least
            device = each.device if each.device is not None else "cpu"
            leaves.append(torch.zeros(tuple(shape), dtype=getattr(torch, each.dtype), device=device))
        args = [build_tree(tree, leaves) for _, tree in self.args]
        return args, {name: build_tree(tree, leaves) for name, tree in self.kwargs}

    def _by_name(self, file: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        positional = [name for name, _ in self.args]
        names = [*positional, *(name for name, _ in self.kwargs)]
        required = [name for name, tree in (*self.args, *self.kwargs) if self._has_tensors(tree)]
        order = positional or (names if len(names) == 1 else [])
        takes = f"it takes {', '.join(names)}" if names else "it takes no input"
        if len(args) > len(order):
            by_name = [name for name, _ in self.kwargs] if order != names else []
            raise InputError(
                f"{file} was given {counted(len(args), 'input')} by position",
                why=takes + (f", of which {', '.join(by_name)} by name only" if by_name else ""),
                do="give each input once" + (f", as in {by_name[0]}=…" if by_name else ""),
            )
        given = dict(zip(order, args, strict=False))
        for name, value in kwargs.items():
            if name not in names:
                raise InputError(f"{file} has no input {name!r}", why=takes, do="leave it out")
            if name in given:
                raise InputError(f"{file} was given {name} twice", why="by position and by name", do="give it once")
            given[name] = value
        if missing := [name for name in required if name not in given]:
            raise InputError(f"{file} needs {', '.join(missing)}", why=takes, do="give every input")
        return given

    def _has_tensors(self, tree: Any) -> bool:
        return any(isinstance(self.inputs[place], TensorInput) for place, _ in tree_leaves(tree, ""))
