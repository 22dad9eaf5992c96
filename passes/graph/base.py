"""The interface of a pass, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from jetvit.passes.graph.rewritable import RewritableGraph


@dataclass(frozen=True)
class PassResult:
    """The result of a pass: how often it fired, and notes for the reader, one sentence each.

    `planned` are the sites of a plan that the graph has, by the plan's names.
    """

    fired: int = 0
    notes: tuple[str, ...] = ()
    planned: tuple[str, ...] = ()


class Pass(Protocol):
    """A frozen dataclass whose fields are its options. Calling it changes the graph in place."""

    name: ClassVar[str]

    def __call__(self, graph: RewritableGraph) -> PassResult:
        """Run the pass; a second run fires nowhere."""
        ...
