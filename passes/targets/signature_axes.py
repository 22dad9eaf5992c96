"""Read the open axes of a program's inputs: their symbols, bounds and multiples."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import SymInt
from torch.export import ExportedProgram

from jetvit.passes.targets.signature_inputs import ConstantInput, OpenAxis, TensorInput, role_of
from jetvit.torch_private import bound_sympy, int_oo, size_guards

_MOST = 2**62  # torch writes some open bounds as a number near the largest int64


def axis_of(
    program: ExportedProgram, name: str, axis: int, size: int | SymInt, multiples: Mapping[tuple[str, int], int]
) -> int | OpenAxis | None:
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
    return OpenAxis(str(symbol), int(factor), int(offset), least, most, multiples.get((name, axis), 1))


def with_names(inputs: Sequence[TensorInput | ConstantInput]) -> Iterator[TensorInput | ConstantInput]:
    """The inputs with words for torch's symbols: batch, height and width of images, else the input and the axis."""
    names: dict[str, str] = {}
    for each in inputs:
        if isinstance(each, ConstantInput):
            yield each
            continue
        axes: list[int | OpenAxis | None] = []
        for index, axis in enumerate(each.shape):
            if isinstance(axis, OpenAxis):
                role = role_of(each.shape, index)
                word = role if role and role not in names.values() else f"{each.name}_{role or index}"
                axis = replace(axis, symbol=names.setdefault(axis.symbol, word))
            axes.append(axis)
        yield replace(each, shape=tuple(axes))


def size_multiples(program: ExportedProgram) -> dict[tuple[str, int], int]:
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
