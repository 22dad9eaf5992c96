"""Name the line of a model's code that is running, or that failed, and what the error says."""

from __future__ import annotations

import sys
from types import FrameType

from jetvit.patterns.wording import without_reprs

# Frames of these packages stand between a line of the model and the reader of a message.
_NOT_OF_MODELS = {"torch", "jetvit", *sys.stdlib_module_names} - {"__main__"}


def running_line() -> str:
    """The innermost line that is running outside of torch and jetvit, as "file.py:12 in forward", or ""."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if _is_of_model(frame):
            return _described(frame, frame.f_lineno)
        frame = frame.f_back
    return ""


def failing_line(error: BaseException) -> str:
    """The innermost line outside of torch and jetvit that an error, or what caused it, was raised in, or ""."""
    for each in causes(error):
        line, traceback = "", each.__traceback__
        while traceback is not None:
            if _is_of_model(traceback.tb_frame):
                line = _described(traceback.tb_frame, traceback.tb_lineno)
            traceback = traceback.tb_next
        if line:
            return line
    return ""


def causes(error: BaseException) -> list[BaseException]:
    """The error, the one that it was raised from or while handling, and so on."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or following.__context__
    return chain


def first_lines(error: BaseException, count: int = 3) -> str:
    """The start of what an error says, on one line, or its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_reprs(" ".join(lines[:count])) or type(error).__name__


def _is_of_model(frame: FrameType) -> bool:
    name = str(frame.f_globals.get("__name__", ""))
    generated = frame.f_code.co_filename == "<string>" and name != "__main__"  # code that torch or a library made
    return not generated and name.partition(".")[0] not in _NOT_OF_MODELS


def _described(frame: FrameType, line: int) -> str:
    return f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_name}"
