"""Sizes as a reader wants them: an int, or an expression over the letters of the input, such as "(H//8)*(W//8) + 5"."""

from __future__ import annotations

import re

import sympy
import torch
from sympy.printing.precedence import PRECEDENCE
from sympy.printing.str import StrPrinter

from jetvit.patterns.captured import CapturedGraph
from jetvit.patterns.sizes import Size, expression, is_static

_IMAGE_AXES = {0: "B", 2: "H", 3: "W"}


class SizeNames:
    """The names of the symbols of a dynamic graph: B, H and W where they are the axes of the first image input."""

    def __init__(self, graph: CapturedGraph | None = None):
        self._letters: dict[sympy.Symbol, sympy.Symbol] = {}
        self.inputs: list[tuple[str, torch.Tensor]] = []
        if graph is None:
            return
        for node in graph.module.graph.find_nodes(op="placeholder"):
            if node not in graph.tensor_names and isinstance(value := node.meta.get("val"), torch.Tensor):
                self.inputs.append((node.name, value))
        image = next((value for _, value in self.inputs if value.ndim == 4), None)
        if image is None:
            return
        for axis, letter in _IMAGE_AXES.items():
            size = image.shape[axis]
            if not is_static(size) and isinstance(symbol := expression(size), sympy.Symbol):
                # A square input has one symbol for both sides: it is H.
                self._letters.setdefault(symbol, sympy.Symbol(letter, integer=True, positive=True))

    def text(self, size: Size) -> int | str:
        """An int, or the expression of a symbolic size."""
        if is_static(size):
            return int(size)
        return _Printer().doprint(expression(size).xreplace(self._letters))

    def reword(self, sentence: str) -> str:
        """A sentence whose symbols are those of the graph, in the letters of the input."""
        for symbol, letter in self._letters.items():
            sentence = re.sub(rf"\b{symbol.name}\b", letter.name, sentence)
        return re.sub(r"\(\(([^()]*)\)\)", r"(\1)", sentence)  # torch puts two pairs around a floor division


class _Printer(StrPrinter):
    """Sympy's text with // for floor division."""

    printmethod = ""  # torch's FloorDiv brings its own, which puts brackets around everything

    def _print_FloorDiv(self, division: sympy.Expr) -> str:
        return "//".join(self.parenthesize(part, PRECEDENCE["Atom"], strict=True) for part in division.args)
