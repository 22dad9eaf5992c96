"""Sizes that were to stay open and that the model's own code fixed at capture, with `int(height // 8)` for instance.

torch.export leaves such an axis open all the same and keeps a guard beside the program. A file that has no guards, as
ONNX, would give wrong results for every other size.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import math
from collections.abc import Mapping, Sequence
from itertools import product

from torch.export import ExportedProgram

from jetvit.torch_private import size_guards

_AXES = {0: "batch", 2: "height", 3: "width"}
_TRIALS, _MOST_TRIALS = 9, 2000
_FUNCTIONS = {"min": min, "max": max, "int": int, "float": float, "sym_float": float, "math": math, "abs": abs}


def fixed_sizes(program: ExportedProgram) -> list[str]:
    """A condition on the open sizes of a program that does not hold for every size: "height // 8 == 4".

    A size that must be a multiple of something is not among them, nor what holds for all of many sizes that are tried:
    torch writes down equations that it could not simplify.
    """
    guards = []
    for text in size_guards(program):
        with contextlib.suppress(SyntaxError):  # torch writes them for itself
            guards.append(_Guard(text))
    others = [guard for guard in guards if not guard.is_equation]
    found = (guard for guard in guards if guard.is_equation and not _always_holds(guard, others))
    return [ast.unparse(_InWords().visit(guard.tree)) for guard in found]


class _Guard:
    """A condition on sizes, such as "L['x'].size()[2] // 8 == 4", and the sizes that it names."""

    def __init__(self, text: str):
        expression = ast.parse(text, mode="eval")
        self.tree = expression.body
        lookups = _Lookups()
        code = ast.Expression(lookups.visit(copy.deepcopy(self.tree)))
        self._code = compile(ast.fix_missing_locations(code), "<guard>", "eval")
        self.sizes = lookups.sizes

    @property
    def is_equation(self) -> bool:
        """True for an equation that asks for no multiple of something."""
        tree = self.tree
        if not (isinstance(tree, ast.Compare) and len(tree.ops) == 1 and isinstance(tree.ops[0], ast.Eq)):
            return False
        sides = (tree.left, tree.comparators[0])
        return not any(isinstance(side, ast.BinOp) and isinstance(side.op, ast.Mod) for side in sides)

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """True if it holds for these sizes; False if it reads anything else."""
        try:
            return bool(eval(self._code, {"__builtins__": {}, "sizes": sizes, **_FUNCTIONS}))
        except (NameError, TypeError, ZeroDivisionError):
            return False


def _always_holds(equation: _Guard, others: Sequence[_Guard]) -> bool:
    """True if an equation holds for all tried sizes of its inputs for which the other guards hold, at least for one."""
    tried = {size: _values(size, others) for size in sorted(equation.sizes)}
    if not tried or not all(tried.values()) or math.prod(map(len, tried.values())) > _MOST_TRIALS:
        return False
    return all(equation.holds(dict(zip(tried, values, strict=True))) for values in product(*tried.values()))


def _values(size: str, others: Sequence[_Guard]) -> list[int]:
    """Some numbers that the guards on one size alone allow for it, small and large."""
    alone = [guard for guard in others if guard.sizes == {size}]

    def is_allowed(value: int) -> bool:
        return all(guard.holds({size: value}) for guard in alone)

    allowed = [value for value in range(1, 1025) if is_allowed(value)]
    some = allowed[:: max(1, len(allowed) // _TRIALS)][:_TRIALS]
    return some + [64 * value for value in some[-_TRIALS // 3 :] if is_allowed(64 * value)]


class _Lookups(ast.NodeTransformer):
    """`L['x'].size()[2]` as `sizes["L['x'].size()[2]"]`, and which there are."""

    def __init__(self) -> None:
        self.sizes: set[str] = set()

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        match node:
            case ast.Subscript(value=ast.Call(func=ast.Attribute(attr="size"))):
                self.sizes.add(text := ast.unparse(node))
                return ast.Subscript(ast.Name("sizes", ast.Load()), ast.Constant(text), ast.Load())
        return node


class _InWords(ast.NodeTransformer):
    """torch's `L['x'].size()[2]` as `height`, and what it converts as it is."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        match node:
            case ast.Subscript(
                value=ast.Call(func=ast.Attribute(value=tensor, attr="size")), slice=ast.Constant(value=int(axis))
            ):
                return ast.Name(_AXES.get(axis) or f"{ast.unparse(self.visit(tensor))}.size({axis})")
            case ast.Subscript(value=ast.Name(id="L"), slice=ast.Constant(value=name)):
                return ast.Name(str(name))
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        converts = isinstance(node.func, ast.Name) and node.func.id in ("sym_float", "int", "float")
        return node.args[0] if converts and len(node.args) == 1 else node
