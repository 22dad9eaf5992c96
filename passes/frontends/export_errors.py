"""Messages of a failed `torch.export` with a known cause, in the words of the model's author."""

from __future__ import annotations

import re
from dataclasses import dataclass

from jetvit.passes.graph.source_lines import causes, first_lines

_COMPILE = "torch.compile(model, backend='jetvit') splits a model there instead"


@dataclass(frozen=True)
class Cause:
    """Why an export failed, and what to do; `why` may use the groups of `pattern`, a part of torch's text."""

    pattern: str
    why: str
    do: str


_KNOWN = (
    Cause(
        r"data is not allocated yet",
        "torch reads the values of tensors in a Python list or tuple there, which is an index or is made one tensor, "
        "and an export runs the model without values",
        "make a tensor of the list first, with torch.stack(list)",
    ),
    Cause(
        r"Cannot access data pointer|\.numpy\(\) is not supported|Cannot copy out of meta tensor",
        "the values of a tensor leave torch there, as by .numpy() and .data_ptr(), and an export runs the model "
        "without values",
        f"compute it with torch's operators; {_COMPILE}",
    ),
    Cause(
        r"^(?:Could not find .* for |)(\w+[.:]+\w+(?:\.\w+)?)\s+The error above occurred",
        r"the operator \1 does not say which shape its result has",
        f"register that with torch.library.register_fake, or use another operator; {_COMPILE}",
    ),
    Cause(
        r"Found (?:<class ')?([\w.<>]+)(?:'>)? in output, which is not a known type",
        r"its result holds a \1, and torch.export knows tensors, numbers, tuples, lists and dicts",
        "return those, or register the type with torch.export.register_dataclass",
    ),
    Cause(
        r"specialized it to be a constant \(1\)",
        "a size that is to stay open is 1 in the example inputs",
        "give example inputs whose open sizes are at least 2: torch.export takes a size of 1 for fixed",
    ),
)


def explained(error: Exception) -> tuple[str, str]:
    """Why an export failed, and what to do about it."""
    texts = [str(each) for each in causes(error)]
    for cause in _KNOWN:
        for text in texts:
            if match := re.search(cause.pattern, text):
                return match.expand(cause.why), cause.do
    why = first_lines(error).partition(" The error above occurred when calling torch.export")[0]
    return why, f"change what torch.export cannot follow; {_COMPILE}"
