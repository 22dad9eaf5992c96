"""The equation of an einsum."""

from __future__ import annotations

import string
from collections.abc import Sequence


def parse_einsum(equation: str, ranks: Sequence[int]) -> tuple[list[str], str] | None:
    """The terms and the result of an equation such as "bhqd,bhkd->bhqk"; None for a trace or no result.

    Each axis that an ellipsis stands for gets a letter; `ranks` are those of the operands.
    """
    terms, arrow, result = equation.replace(" ", "").partition("->")
    inputs = terms.split(",")
    if "..." in terms:
        letters = "".join(letter for letter in string.ascii_letters if letter not in equation)
        counts = [rank - len(term) + 3 for term, rank in zip(inputs, ranks, strict=True) if "..." in term]
        most = letters[: max(counts)]
        inputs = [
            term.replace("...", most[max(0, len(most) - (rank - len(term) + 3)) :])
            for term, rank in zip(inputs, ranks, strict=True)
        ]
        result = result.replace("...", most)
    if not arrow or any(len(set(term)) != len(term) for term in [*inputs, result]):
        return None
    return inputs, result
