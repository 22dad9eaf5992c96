"""Sizes that were to stay open and that the model's own code fixed at capture, with `int(height // 8)` for instance.

torch.export leaves such an axis open all the same and keeps a guard beside the program. A file that has no guards, as
ONNX, would give wrong results for every other size.
"""

from __future__ import annotations

import ast

from torch.export import ExportedProgram

from jetvit.torch_private import size_guards

_AXES = {0: "batch", 2: "height", 3: "width"}


def fixed_sizes(program: ExportedProgram) -> list[str]:
    """What must hold of the open sizes of a program, and does not for every size: "height // 8 == 4".

    A size that must be a multiple of something is not among them.
    """
    found = []
    for guard in size_guards(program):
        try:
            comparison = ast.parse(guard, mode="eval").body
        except SyntaxError:  # torch writes them for itself
            continue
        if _is_equation(comparison):
            found.append(ast.unparse(_InWords().visit(comparison)))
    return found


def _is_equation(tree: ast.expr) -> bool:
    if not (isinstance(tree, ast.Compare) and len(tree.ops) == 1 and isinstance(tree.ops[0], ast.Eq)):
        return False
    sides = (tree.left, tree.comparators[0])
    return not any(isinstance(side, ast.BinOp) and isinstance(side.op, ast.Mod) for side in sides)


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
