"""Makes `import torchvision` work where its compiled extension does not load."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys

import torch

_library: torch.library.Library | None = None  # the operators live as long as this object
_OPERATORS = ("nms", "qnms")


def ensure_torchvision() -> None:
    """Import torchvision, if it is installed; declare `torchvision::nms` and `torchvision::qnms` if it lacks them.

    timm and transformers import torchvision wherever it is installed, and its import registers shape functions for
    these two operators. In a torchvision built for another torch (a CUDA build beside a CPU torch, say) they are
    missing, so a Vision Transformer that never calls them cannot be imported. The declarations have no kernels: a call
    still fails.
    The import is tried first: how torchvision's extension is called and loaded differs between its releases, and an
    operator that is declared before the extension loads makes that end the process.
    A torchvision that fails otherwise is left alone: who needs it meets its own error.
    """
    global _library
    if _library is not None or "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        # A failed import leaves the parts that were imported before the failure.
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        if not any(f"torchvision::{name}" in str(error) for name in _OPERATORS):
            return
        _library = torch.library.Library("torchvision", "DEF")
        for name in _OPERATORS:
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        with contextlib.suppress(Exception):
            importlib.import_module("torchvision")
