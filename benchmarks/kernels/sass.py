"""Count instructions in a disassembled kernel: in all, in each loop, and those of fp64."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][A-Z0-9_.]*)(.*?);")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_BRANCH = re.compile(r"`\((\.L_x_\d+)\)")
# Arithmetic of fp64, and conversions from or to it.
_FP64 = re.compile(r"D(?:FMA|ADD|MUL|SETP|MNMX)\b|.*\bF64\b")


@dataclass(frozen=True)
class Loop:
    """The instructions of a loop body, without those of the loops inside it.

    start: the index of its first instruction in the kernel. count: of instructions. opcodes: how many of each opcode,
    without modifiers ("LDG", "FFMA").
    """

    start: int
    count: int
    opcodes: Counter[str]


@dataclass(frozen=True)
class Listing:
    """A kernel's instructions. straight: those outside of all loops. loops: in the order of the code."""

    count: int
    fp64: int
    opcodes: Counter[str]
    straight: int
    loops: tuple[Loop, ...]


def read_listing(text: str) -> Listing:
    """Read what `nvdisasm -c` prints for a file that holds one kernel.

    A loop is what lies between a label and the last branch back to it. The padding after the last EXIT is left out, and
    with it the branch to itself that ends every kernel.
    """
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    branches: list[tuple[int, str]] = []
    fp64 = 0
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(opcodes)
        elif found := _INSTRUCTION.match(line):
            if found[1].startswith("BRA") and (target := _BRANCH.search(found[2])):
                if labels.get(target[1]) == len(opcodes):
                    break  # a branch to itself: the end
                branches.append((len(opcodes), target[1]))
            fp64 += bool(_FP64.match(found[1]))
            opcodes.append(found[1].partition(".")[0])
    ends: dict[int, int] = {}
    for place, label in branches:
        start = labels.get(label, place + 1)
        if start <= place:
            ends[start] = max(place, ends.get(start, place))
    owner = [-1] * len(opcodes)  # the innermost loop of each instruction
    for start, end in sorted(ends.items(), key=lambda item: item[0] - item[1]):  # the longest first
        owner[start : end + 1] = [start] * (end + 1 - start)
    loops = tuple(Loop(start, owner.count(start), _count(opcodes, owner, start)) for start in sorted(ends))
    return Listing(len(opcodes), fp64, Counter(opcodes), owner.count(-1), loops)


def _count(opcodes: list[str], owner: list[int], start: int) -> Counter[str]:
    return Counter(opcode for opcode, loop in zip(opcodes, owner, strict=True) if loop == start)
