"""Taps: the values of a captured graph that a head reads, which are the outputs of some of the model's blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from jetvit.patterns.errors import InputError
from jetvit.patterns.names import clean_name
from jetvit.patterns.site import AttentionSite, Sites
from jetvit.patterns.wording import counted
from jetvit.search.tasks.task import Task

_BLOCK = re.compile(r"^(.*\.)?\d+(?=\.|$)")


class Tap(nn.Module):
    """Passes a value on, and keeps a copy of it where it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor | None = None
        self.reads = False

    def forward(self, value: Tensor) -> Tensor:
        """The value itself."""
        if self.reads:
            self.seen = value.clone()  # what follows in the model may write into it
        return value


class Taps:
    """Taps in a graph, in the order of `blocks`.

    Args:
        model: changed in place: it yields the same as before.
        blocks: names of modules, each of which yields tokens [batch, token, channel].
        site: an attention whose tokens those are.
    Raises:
        InputError: nothing leaves a block of that name, or no tokens do.
    """

    def __init__(self, model: GraphModule, blocks: Sequence[str], site: AttentionSite):
        self.blocks = tuple(blocks)
        self._extra, self._grid = int(site.extra_before), (int(site.grid[0]), int(site.grid[1]))
        self._taps = [Tap() for _ in blocks]
        self.channels: list[int] = []
        for number, (block, tap) in enumerate(zip(blocks, self._taps, strict=True)):
            node = _output_of(model, block)
            shape = node.meta["val"].shape
            if len(shape) != 3 or shape[1] != site.tokens:
                raise InputError(
                    f"{block} yields no tokens",
                    why=f"its output is {list(shape)}, and the attention has {counted(site.tokens, 'token')}",
                    do="name blocks whose outputs are [batch, token, channel]",
                )
            self.channels.append(int(shape[2]))
            model.add_submodule(f"tap_{number}", tap)
            with model.graph.inserting_after(node):
                call = model.graph.call_module(f"tap_{number}", (node,))
            call.meta = dict(node.meta)
            node.replace_all_uses_with(call, delete_user_cb=lambda user, call=call: user is not call)
        model.recompile()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep what passes, for `tokens`, meanwhile."""
        for tap in self._taps:
            tap.reads = True
        try:
            yield
        finally:
            for tap in self._taps:
                tap.reads, tap.seen = False, None

    def tokens(self) -> list[Tensor]:
        """Return the tokens that passed last at each tap: [batch, token, channel]."""
        found = [tap.seen for tap in self._taps if tap.seen is not None]
        assert len(found) == len(self._taps), "nothing has passed"
        return found

    def maps(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """The grid tokens of each as [batch, channel, height, width]."""
        count = self._grid[0] * self._grid[1]
        return [each[:, self._extra : self._extra + count].mT.unflatten(2, self._grid) for each in tokens]


class WithTokens(nn.Module):
    """A model that yields (what it yields, the tokens at its taps).

    Weights in shards are put together for a backward pass that begins at an output: so the tokens have to be one.
    """

    def __init__(self, model: nn.Module, taps: Taps):
        super().__init__()
        self.model, self._taps = model, taps

    def forward(self, *args: object, **kwargs: object) -> tuple[object, list[Tensor]]:
        """Run the model, while the taps are read."""
        return self.model(*args, **kwargs), self._taps.tokens()


def blocks_of(sites: Sites) -> list[str]:
    """The blocks that the sites are in: their names up to the last number. Raises InputError where there is none."""
    found = []
    for site in sites:
        match = _BLOCK.match(site.name.partition("#")[0])
        if match is None:
            raise InputError(
                f"the block of the attention {site.name} is not known",
                why="no part of its name is a number",
                do="name the blocks that the head reads: taps=[…]",
            )
        found.append(match[0])
    return list(dict.fromkeys(found))


def evenly(blocks: Sequence[str], count: int) -> list[str]:
    """So many of the blocks, evenly spaced, the last among them."""
    if not 1 <= count <= len(blocks):
        raise InputError(
            f"{counted(count, 'tap')} in {counted(len(blocks), 'block')}",
            do="name the blocks that the head reads: taps=[…]",
        )
    return [blocks[round((number + 1) * len(blocks) / count) - 1] for number in range(count)]


def read_by_the_head(model: GraphModule, blocks: Sequence[str]) -> list[str]:
    """Select the blocks whose outputs are read by something that is in none of them."""
    within = {node: _blocks_around(node, blocks) for node in model.graph.nodes}
    return [block for block in blocks if any(not within[user] for user in _output_of(model, block).users)]


def task_blocks(task: Task, model: GraphModule, sites: Sites) -> list[str]:
    """The blocks that the head of a task reads by default.

    Raises:
        InputError: the blocks of the model are not known, or there are fewer than the head reads.
    """
    blocks = blocks_of(sites)
    if task.taps:
        return evenly(blocks, task.taps)
    return read_by_the_head(model, blocks) or blocks[-1:]


def _output_of(model: GraphModule, block: str) -> Node:
    """The last node of a module whose value is used outside of it."""
    for node in reversed(model.graph.nodes):
        inside = node.op not in ("placeholder", "get_attr", "output") and _blocks_around(node, [block])
        leaves = any(not _blocks_around(user, [block]) for user in node.users)
        if inside and leaves and isinstance(node.meta.get("val"), torch.Tensor):
            return node
    raise InputError(f"nothing leaves the block {block}", do="name modules of the model, such as blocks.3")


def _blocks_around(node: Node, blocks: Sequence[str]) -> list[str]:
    """Find the module that a node was made in."""
    stack = node.meta.get("nn_module_stack") or {}
    names = {clean_name(entry[0]) for entry in stack.values()}
    return [block for block in blocks if block in names]
