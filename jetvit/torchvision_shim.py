"""Makes `import torchvision` work where its compiled extension does not load."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys

import torch

_library: torch.library.Library | None = None  # the operators live as long as this object


def ensure_torchvision() -> None:
    """Declare `torchvision::nms` and `torchvision::qnms` if torchvision is installed and its extension does not load.

    timm and transformers import torchvision wherever it is installed, and its import registers shape functions for
    these two operators. In a torchvision built for another torch (a CUDA build beside a CPU torch, say) they are
    missing, so a Vision Transformer that never calls them cannot be imported. The declarations have no kernels: a call
    still fails.
    Does nothing without torchvision, with one that works, or when called again.
    """
    global _library
    if _library is not None or "torchvision" in sys.modules:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations or _extension_loads(spec.submodule_search_locations[0]):
        return
    _library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _extension_loads(folder: str) -> bool:
    loader = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    extension = importlib.machinery.FileFinder(folder, loader).find_spec("_C")
    if extension is None or extension.origin is None:
        return False
    try:
        torch.ops.load_library(extension.origin)
    except (ImportError, OSError):
        return False
    return hasattr(torch.ops.torchvision, "nms")
