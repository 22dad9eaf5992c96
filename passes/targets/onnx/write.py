"""An ONNX model as a file, or as a file and its weights beside it; checked first, then put in place."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from jetvit.cost_model.files.whole_file import move_together
from jetvit.patterns.errors import InputError, RewriteError

if TYPE_CHECKING:
    import onnx_ir as ir

# A protobuf file holds 2 GiB; this leaves room for the graph.
EXTERNAL_ABOVE = 2**31 - 2**27
# Small tensors (shapes, axes) stay in the model file, where shape inference reads them.
_SMALL = 1024


def write_onnx(
    model: ir.Model, path: str | os.PathLike[str], *, external_above: int = EXTERNAL_ABOVE
) -> tuple[Path, ...]:
    """Check a model and write it; a failure leaves what was there before, and nothing new.

    Both files are written and checked in a hidden folder beside `path`, then renamed, the weights first. A symbolic
    link is followed: the file behind it is replaced.

    Args:
        model: what `onnx_model` gave; it is not changed.
        path: the file. Weights that are too many for it go to `path` + ".data", which has to stay beside it.
        external_above: bytes of weights above which they go there.
    Returns:
        The files written: the model, and its weights if they are apart.
    Raises:
        InputError: the parent folder is missing or closed to us, or a folder has the name.
        RewriteError: the model is not valid ONNX.
    """
    import onnx
    import onnx_ir as ir

    shown, target = Path(path), Path(path).resolve()
    data = target.with_name(f"{target.name}.data")
    for each in (target, data):
        if each.exists() and not each.is_file():
            raise InputError(f"cannot write {shown}", why=f"{each} is no regular file", do="choose another name")
    weights = sum(
        value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None
    )
    external = weights > external_above
    try:
        folder = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
    except OSError as error:
        raise InputError(
            f"cannot write {shown}", why=f"{target.parent}: {error.strerror}", do="choose another folder"
        ) from error
    try:
        written = folder / target.name
        ir.save(
            model,
            written,
            format="protobuf",
            external_data=data.name if external else None,
            size_threshold_bytes=_SMALL,
        )
        try:
            # By its path: a model above 2 GB cannot be checked in memory. `full_check` infers shapes, strictly.
            onnx.checker.check_model(str(written), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise RewriteError(
                "the ONNX model is not valid", why=str(error).strip().splitlines()[0], do="report it with the model"
            ) from error
        move_together([*([folder / data.name] if external else []), written], target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return (target, data) if external else (target,)
