"""The signature of a written file: what its inputs are called, which tensors it takes, and how its outputs are nested.

It is data, and travels inside the file where the format has no such description itself: in the metadata_props of an
ONNX model, and in an extra record of an AOTInductor package. `jetvit.load` checks every call against it.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted
from jetvit.torch_private import bound_sympy, int_oo, pytree, size_guards

KEY = "jetvit.signature"
"""Where an ONNX file keeps it in metadata_props."""
VERSION = 1
_MOST = 2**62  # torch writes some open bounds as a number near the largest int64


@dataclass(frozen=True)
class Axis:
    """An open axis: `factor` · (a size called `symbol`) + `offset`, within bounds; axes of one symbol agree."""

    symbol: str
    factor: int = 1
    offset: int = 0
    least: int = 1
    most: int | None = None
    multiple_of: int = 1


@dataclass(frozen=True)
class TensorInput:
    """A tensor that a file takes.

    Attributes:
        shape: each axis has a fixed size, is an `Axis`, or is None, which takes any size.
        device: "cpu" or "cuda"; None takes any.
        example: the shape that the file was written with.
        order: the axes by their strides, largest first; None for a contiguous tensor.
    """

    name: str
    dtype: str
    shape: tuple[int | Axis | None, ...]
    device: str | None = None
    example: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ConstantInput:
    """An argument that is no tensor: the file was written for this value alone, unless it is open."""

    name: str
    value: Any
    is_open: bool = False


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
                      for place, path in _leaves(tree, name)}  # fmt: skip
        examples = pytree.tree_leaves(program.example_inputs) if program.example_inputs is not None else []
        multiples = _multiples(program)
        inputs: list[TensorInput | ConstantInput] = []
        for place, spec in enumerate(specs):
            value = placeholders[spec.arg.name].meta.get("val") if spec.arg.name in placeholders else None
            name = leaf_names.get(place, spec.arg.name)
            example = examples[place] if len(examples) == len(specs) else None
            if not isinstance(value, Tensor):
                is_open = not isinstance(spec.arg, ConstantArgument)  # a number that the graph computes with
                inputs.append(ConstantInput(name, example if is_open else spec.arg.value, is_open))
                continue
            axes = [_axis(program, name, axis, size, multiples) for axis, size in enumerate(value.shape)]
            shape, order = (tuple(example.shape), order_of(example)) if isinstance(example, Tensor) else (None, None)
            dtype = str(value.dtype).removeprefix("torch.")
            inputs.append(TensorInput(name, dtype, tuple(axes), value.device.type, shape, order))
        results = [each.arg for each in program.graph_signature.output_specs if each.kind == OutputKind.USER_OUTPUT]
        counter = itertools.count()
        places = [None if isinstance(each, ConstantArgument) else next(counter) for each in results]
        outputs = _plain(pytree.tree_unflatten(places, program.call_spec.out_spec))
        trees = [(name, _plain(tree)) for name, tree in zip(names, args, strict=True)]
        named = _with_names(inputs)
        return cls(tuple(named), tuple(trees), tuple((str(k), _plain(v)) for k, v in kwargs.items()), outputs)

    def __str__(self) -> str:
        shown = []
        for each in self.inputs:
            if isinstance(each, TensorInput):
                shown.append(f"{each.name}: {each.dtype} [{', '.join(map(_axis_text, each.shape))}]")
        return ", ".join(shown)

    # --- as data ---

    def to_json(self) -> str:
        """As text."""
        inputs = [{"kind": type(each).__name__, **asdict(each)} for each in self.inputs]
        trees = {"args": [[name, _to_data(tree)] for name, tree in self.args],
                 "kwargs": [[name, _to_data(tree)] for name, tree in self.kwargs]}  # fmt: skip
        return json.dumps({"version": VERSION, "inputs": inputs, **trees, "outputs": _to_data(self.outputs)})

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
                inputs = tuple(_input(each) for each in data["inputs"])
                trees = [tuple((str(name), _from_data(tree)) for name, tree in data[key]) for key in ("args", "kwargs")]
                return cls(inputs, trees[0], trees[1], _from_data(data["outputs"]))
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
                given[name] = _build(tree, [getattr(each, "value", None) for each in self.inputs])
            for place, value in _match(file, name, tree, given[name]):
                values[place] = value
        sizes: dict[str, tuple[int, str]] = {}
        for each, value in zip(self.inputs, values, strict=True):
            if isinstance(each, TensorInput):
                _check(file, each, value, sizes)
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
        given = {name: _build(tree, leaves) for name, tree in (*self.args, *self.kwargs)}
        return self._bound(leaves, given)

    def _bound(self, leaves: list[Any], given: Mapping[str, Any]) -> Bound:
        return Bound(tuple(given[name] for name, _ in self.args), {k: given[k] for k, _ in self.kwargs}, leaves)

    def build(self, outputs: Sequence[Any]) -> Any:
        """The outputs of the file in the structure of the original's."""
        return _build(self.outputs, outputs)

    def examples(self) -> tuple[list[Any], dict[str, Any]]:
        """Arguments of zeros, in the sizes of the example that the file was written with."""
        leaves: list[Any] = []
        for each in self.inputs:
            if isinstance(each, ConstantInput):
                leaves.append(each.value)
                continue
            least = [axis if isinstance(axis, int) else max(_least(axis), 1) for axis in each.shape]
            shape = each.example if each.example is not None else least
            device = each.device if each.device is not None else "cpu"
            leaves.append(torch.zeros(tuple(shape), dtype=getattr(torch, each.dtype), device=device))
        return [_build(tree, leaves) for _, tree in self.args], {n: _build(tree, leaves) for n, tree in self.kwargs}

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
        return any(isinstance(self.inputs[place], TensorInput) for place, _ in _leaves(tree, ""))


# --- axes ---------------------------------------------------------------------------------------------------------


def _axis(
    program: ExportedProgram, name: str, axis: int, size: int | SymInt, multiples: Mapping[tuple[str, int], int]
) -> int | Axis | None:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    if expression.is_Integer:
        return int(expression)
    symbols = list(expression.free_symbols)
    if len(symbols) != 1:
        return None
    (symbol,) = symbols
    factor, offset = expression.coeff(symbol, 1), expression.coeff(symbol, 0)
    if not (factor.is_Integer and offset.is_Integer and (factor * symbol + offset - expression).expand() == 0):
        return None
    bounds = bound_sympy(symbol, program.range_constraints)
    # torch.export notes 2 as the least value of every open size, though graphs take 1 as well.
    least = 1 if bounds.lower == -int_oo or bounds.lower <= 2 else int(bounds.lower)
    most = None if bounds.upper == int_oo or bounds.upper > _MOST else int(factor * bounds.upper + offset)
    least = int(factor * least + offset)
    return Axis(str(symbol), int(factor), int(offset), least, most, multiples.get((name, axis), 1))


def _with_names(inputs: Sequence[TensorInput | ConstantInput]) -> Iterator[TensorInput | ConstantInput]:
    """The inputs with words for torch's symbols: batch, height and width of images, else the input and the axis."""
    names: dict[str, str] = {}
    for each in inputs:
        if isinstance(each, ConstantInput):
            yield each
            continue
        axes: list[int | Axis | None] = []
        for index, axis in enumerate(each.shape):
            if isinstance(axis, Axis):
                role = _role(each.shape, index)
                word = role if role and role not in names.values() else f"{each.name}_{role or index}"
                axis = replace(axis, symbol=names.setdefault(axis.symbol, word))
            axes.append(axis)
        yield replace(each, shape=tuple(axes))


def order_of(tensor: Tensor) -> tuple[int, ...] | None:
    """The axes of a tensor by their strides, largest first; None for a contiguous one."""
    strides: tuple[int, ...] = tensor.stride()
    order = tuple(sorted(range(tensor.dim()), key=lambda axis: -strides[axis]))
    return None if tensor.is_contiguous() or order == tuple(range(tensor.dim())) else order


def dense(tensor: Tensor, order: Sequence[int] | None = None) -> Tensor:
    """The tensor with no gaps between its values, and with its axes in an order; its own storage where it fits.

    An axis of length 1 gets the stride of a new tensor too: it may have any.
    """
    order = range(tensor.dim()) if order is None else order
    moved = tensor.permute(tuple(order)).contiguous()
    strides = torch.empty(moved.shape, device="meta").stride()
    back = sorted(range(tensor.dim()), key=lambda place: order[place])
    return moved.as_strided(moved.shape, strides, moved.storage_offset()).permute(back)


def _multiples(program: ExportedProgram) -> dict[tuple[str, int], int]:
    """Sizes that must be a multiple of a number, by input and axis, as the program's guards say."""
    found: dict[tuple[str, int], int] = {}
    for text in size_guards(program):
        with contextlib.suppress(SyntaxError):
            match ast.parse(text, mode="eval").body:
                case ast.Compare(
                    left=ast.BinOp(
                        left=ast.Subscript(
                            value=ast.Call(
                                func=ast.Attribute(
                                    value=ast.Subscript(value=ast.Name(id="L"), slice=ast.Constant(value=str(name))),
                                    attr="size",
                                )
                            ),
                            slice=ast.Constant(value=int(axis)),
                        ),
                        op=ast.Mod(),
                        right=ast.Constant(value=int(number)),
                    ),
                    ops=[ast.Eq()],
                    comparators=[ast.Constant(value=0)],
                ):
                    found[name, axis] = number
    return found


def _least(axis: Axis | None) -> int:
    """The smallest size that an axis takes."""
    if axis is None:
        return 1
    return -(-axis.least // axis.multiple_of) * axis.multiple_of


def _axis_text(axis: int | Axis | None) -> str:
    if axis is None or isinstance(axis, int):
        return "any" if axis is None else str(axis)
    text = axis.symbol if axis.factor == 1 else f"{axis.factor}·{axis.symbol}"
    return f"{text}+{axis.offset}" if axis.offset else text


def _role(shape: Sequence[Any], axis: int) -> str:
    """What an axis means: the first is the batch, four axes are images; "" where it is not known."""
    if axis == 0:
        return "batch"
    if len(shape) != 4:
        return ""
    channels_last = shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4)
    return ("", "height", "width", "channels")[axis] if channels_last else ("", "channels", "height", "width")[axis]


def _axis_name(shape: Sequence[Any], axis: int) -> str:
    """What an axis is called in an error: "height (axis 2)" of an image, else "axis 1"."""
    role = _role(shape, axis)
    return f"{role} (axis {axis})" if role else f"axis {axis}"


def _check(file: str, expected: TensorInput, value: Any, sizes: dict[str, tuple[int, str]]) -> None:
    """Refuse what is not such a tensor. `sizes` are those of the symbols so far, and whose they are."""
    name = expected.name
    if not isinstance(value, Tensor):
        raise InputError(
            f"{file} does not take {name} as {type(value).__name__}",
            why="every input is a torch.Tensor",
            do="convert it, for example with torch.from_numpy" if type(value).__name__ == "ndarray" else "",
        )
    dtype, shown = str(value.dtype).removeprefix("torch."), "×".join(map(str, value.shape)) or "no axis"
    refused = f"{file} does not take {name} of shape {shown}"
    if len(value.shape) != len(expected.shape):
        takes = f"[{', '.join(map(_axis_text, expected.shape))}]"
        add = "add the batch axis: x.unsqueeze(0)" if len(value.shape) + 1 == len(expected.shape) else ""
        raise InputError(refused, why=f"it has {value.dim()} axes; the file takes {takes}", do=add)
    if dtype != expected.dtype:
        raise InputError(
            f"{file} does not take {name} in {dtype}",
            why=f"it was written for {expected.dtype}",
            do=f"convert it: x.to(torch.{expected.dtype})",
        )
    if expected.device is not None and value.device.type != expected.device:
        raise InputError(
            f"{file} does not take {name} on {value.device}",
            why=f"it runs on {expected.device}",
            do=f"move it: x.to({expected.device!r})",
        )
    wrong: list[str] = []
    is_fixed = False
    for index, (size, axis) in enumerate(zip(value.shape, expected.shape, strict=True)):
        place = _axis_name(expected.shape, index)
        if isinstance(axis, int):
            is_fixed |= size != axis and "channels" not in place
            wrong += [f"its {place} must be {axis}"] if size != axis else []
        elif axis is not None:
            wrong += _check_axis(size, axis, place, name, sizes)
    if wrong:
        takes = "give a tensor of such a size"
        opened = "; or write the file with this axis open: dynamic=True in Python, --dynamic on the command line"
        raise InputError(refused, why=", and ".join(wrong), do=takes + (opened if is_fixed else ""))


def _check_axis(size: int, axis: Axis, place: str, name: str, sizes: dict[str, tuple[int, str]]) -> Iterator[str]:
    if size < axis.least:
        yield f"its {place} must be at least {_least(axis)}"
    elif axis.most is not None and size > axis.most:
        yield f"its {place} must be at most {axis.most}"
    elif size % axis.multiple_of:
        yield f"its {place} must be a multiple of {axis.multiple_of}"
    elif (size - axis.offset) % axis.factor:
        more = f" plus {axis.offset}" if axis.offset else ""
        yield f"its {place} must be a multiple of {axis.factor}{more}"
    else:
        root = (size - axis.offset) // axis.factor
        first, owner = sizes.setdefault(axis.symbol, (root, f"the {place} of {name}"))
        if root != first:
            yield f"its {place} must be {axis.factor * first + axis.offset}, to fit {owner}"


# --- trees --------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """A tree of dicts, lists and tuples; a mapping of another class becomes a dict."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return value if isinstance(value, int) else None


def _leaves(tree: Any, path: str) -> Iterator[tuple[int, str]]:
    """The places in a tree, each with the name that the ONNX file gives it."""
    if isinstance(tree, int):
        yield tree, path
    elif isinstance(tree, Mapping):
        for key, item in tree.items():
            yield from _leaves(item, f"{path}_{key}")
    elif isinstance(tree, list | tuple):
        for index, item in enumerate(tree):
            yield from _leaves(item, f"{path}_{index}")


def _match(file: str, name: str, tree: Any, value: Any) -> Iterator[tuple[int, Any]]:
    """The leaves of an argument by their places.

    Raises:
        InputError: it is nested in another way.
    """
    if isinstance(tree, int):
        yield tree, value
        return
    if tree is None:
        return
    if isinstance(tree, Mapping):
        if not isinstance(value, Mapping) or set(value) != set(tree):
            wanted = f"a dict with the keys {', '.join(map(str, tree))}"
            raise InputError(f"{file} does not take this {name}", why=f"it must be {wanted}", do=f"give {wanted}")
        for key, item in tree.items():
            yield from _match(file, f"{name}[{key!r}]", item, value[key])
        return
    if not isinstance(value, list | tuple) or len(value) != len(tree):
        wanted = f"a {type(tree).__name__} of {len(tree)}"
        raise InputError(f"{file} does not take this {name}", why=f"it must be {wanted}", do=f"give {wanted}")
    for index, (item, each) in enumerate(zip(tree, value, strict=True)):
        yield from _match(file, f"{name}[{index}]", item, each)


def _build(tree: Any, leaves: Sequence[Any]) -> Any:
    """A tree with values in place of places."""
    if isinstance(tree, dict):
        return {key: _build(item, leaves) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_build(item, leaves) for item in tree)
    return None if tree is None else leaves[tree]


def _to_data(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {"dict": [[key, _to_data(item)] for key, item in tree.items()]}
    if isinstance(tree, list | tuple):
        return {type(tree).__name__: [_to_data(item) for item in tree]}
    return tree


def _from_data(data: Any) -> Any:
    match data:
        case None | int():
            return data
        case {"dict": items}:
            return {key: _from_data(item) for key, item in items}
        case {"list": items}:
            return [_from_data(item) for item in items]
        case {"tuple": items}:
            return tuple(_from_data(item) for item in items)
    raise ValueError(f"{data!r} is no tree")


def _input(data: Mapping[str, Any]) -> TensorInput | ConstantInput:
    fields = {key: value for key, value in data.items() if key != "kind"}
    if data["kind"] == "ConstantInput":
        return ConstantInput(**fields)
    if not isinstance(getattr(torch, fields["dtype"]), torch.dtype):
        raise ValueError(f"{fields['dtype']!r} is no dtype")
    axes = [Axis(**axis) if isinstance(axis, dict) else axis for axis in fields.pop("shape")]
    if not all(_is_axis(axis) for axis in axes):
        raise ValueError(f"{axes} is no shape")
    for name in ("example", "order"):
        fields[name] = None if fields[name] is None else tuple(fields[name])
    return TensorInput(**fields, shape=tuple(axes))


def _is_axis(axis: Any) -> bool:
    if isinstance(axis, Axis):
        numbers = (axis.factor, axis.multiple_of, axis.least, 1 if axis.most is None else axis.most)
        return all(type(number) is int and number > 0 for number in numbers) and type(axis.offset) is int
    return axis is None or (type(axis) is int and axis >= 0)
