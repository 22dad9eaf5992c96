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
    """What must hold of the open sizes of a program, and does not for every size: "height // 8 == 4".

    A size that must be a multiple of something is not among them, nor what holds for all of many sizes that are tried:
    torch writes down equations that it could not simplify.
    """
    guards = []
    for guard in size_guards(program):
        with contextlib.suppress(SyntaxError):  # torch writes them for itself
            guards.append(ast.parse(guard, mode="eval"))
    others = [guard for guard in guards if not _is_equation(guard.body)]
    found = (guard for guard in guards if _is_equation(guard.body) and not _always_holds(guard, others))
    return [ast.unparse(_InWords().visit(guard.body)) for guard in found]


def _is_equation(tree: ast.expr) -> bool:
    if not (isinstance(tree, ast.Compare) and len(tree.ops) == 1 and isinstance(tree.ops[0], ast.Eq)):
        return False
    sides = (tree.left, tree.comparators[0])
    return not any(isinstance(side, ast.BinOp) and isinstance(side.op, ast.Mod) for side in sides)


def _always_holds(equation: ast.Expression, others: Sequence[ast.Expression]) -> bool:
    """True if an equation holds for all tried sizes of its inputs for which the other guards hold, at least for one."""
    sizes = {ast.unparse(node) for node in ast.walk(equation) if isinstance(node, ast.Subscript) and _is_size(node)}
    known = {text: _values(text, others) for text in sorted(sizes)}
    if not known or not all(known.values()) or math.prod(map(len, known.values())) > _MOST_TRIALS:
        return False
    return all(_evaluate(equation, dict(zip(known, values, strict=True))) for values in product(*known.values()))


def _values(size: str, others: Sequence[ast.Expression]) -> list[int]:
    """Some numbers that the guards on one size alone allow for it, small and large."""
    alone = [
        guard
        for guard in others
        if {ast.unparse(node) for node in ast.walk(guard) if isinstance(node, ast.Subscript) and _is_size(node)}
        == {size}
    ]

    def is_allowed(value: int) -> bool:
        return all(_evaluate(guard, {size: value}) for guard in alone)

    allowed = [value for value in range(1, 1025) if is_allowed(value)]
    some = allowed[:: max(1, len(allowed) // _TRIALS)][:_TRIALS]
    return some + [64 * value for value in some[-_TRIALS // 3 :] if is_allowed(64 * value)]


def _evaluate(guard: ast.Expression, sizes: Mapping[str, int]) -> bool:
    """Whether a guard holds for these sizes; False where it reads something else."""
    replaced = _WithSizes(sizes).visit(copy.deepcopy(guard))
    code = compile(ast.fix_missing_locations(replaced), "<guard>", "eval")
    try:
        return bool(eval(code, {"__builtins__": {}}, dict(_FUNCTIONS)))
    except (NameError, TypeError, ZeroDivisionError):
        return False


def _is_size(node: ast.Subscript) -> bool:
    return (
        isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and node.value.func.attr == "size"
    )


class _WithSizes(ast.NodeTransformer):
    """Sizes of inputs as numbers."""

    def __init__(self, sizes: Mapping[str, int]):
        self.sizes = sizes

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        text = ast.unparse(node)
        return ast.Constant(self.sizes[text]) if text in self.sizes else node


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
