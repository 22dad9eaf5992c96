"""Name the errors that end a command: what happened, why, and what to do."""

from __future__ import annotations

from jetvit.patterns.errors import DiskFullError, InputError, JetvitError, PlanError
from jetvit.patterns.resources import disk_full, out_of_memory
from jetvit.patterns.wording import without_reprs


def refusal(error: Exception) -> JetvitError:
    """The refusal that an error stands for; what is unexpected is a defect of jetvit, or of the model's own code."""
    what = error.what if isinstance(error, JetvitError) else ""
    if message := out_of_memory(error):
        why = f"{what}: {message}" if what else message
        return InputError("out of memory", why=why, do="take a smaller --size or --batch, or a dtype of 16 bits")
    if not isinstance(error, DiskFullError | PlanError) and (message := disk_full(error)):  # these name the file
        why = f"{what}: {message}" if what else message
        return InputError("the disk is full", why=why, do="free space; temporary files go to the folder TMPDIR")
    if isinstance(error, JetvitError):
        return error
    if isinstance(error, OSError):
        return InputError(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
    what = " ".join(without_reprs(f"{type(error).__name__}: {error}").split())[:400]
    return InputError(what, why="jetvit did not expect this", do="run it again with --debug")
