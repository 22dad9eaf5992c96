"""The file of a `Predictor`: a .npz of number arrays and one JSON text. Nothing in it is ever run, all is checked."""

from __future__ import annotations

import json
import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jetvit.cost_model.measuring.operation import ELEMENT_BYTES, OPS
from jetvit.cost_model.predicting.conformal import Calibration
from jetvit.cost_model.predicting.kernel_model import KernelModel
from jetvit.cost_model.predicting.roofline import SIZES, WINDOW, Device, Roofline
from jetvit.cost_model.predicting.trees import Forest
from jetvit.patterns.wording import counted

FORMAT, VERSION = "jetvit latency predictor", 2
_NODES = ("roots", "feature", "threshold", "left", "right", "value")
_HULL = ("smallest", "largest")
_SUM = ("base", "low", "high")
_LIMIT_BYTES = 1 << 30  # Unpacked. A predictor of a thousand kernels is smaller.


class Content(NamedTuple):
    """The content of the file of a predictor."""

    device: Device
    models: dict[str, KernelModel]
    calibrations: dict[str, Calibration]
    fitted_to: str


def save(predictor: Content, path: Path) -> None:
    """Write a predictor to exactly `path`."""
    arrays: dict[str, np.ndarray] = {}
    kernels = []
    for index, (name, model) in enumerate(sorted(predictor.models.items())):
        roofline, forest, calibration = model.roofline, model.forest, predictor.calibrations[name]
        kernels.append(
            {
                "name": name,
                "op": roofline.op,
                "element_bytes": roofline.element_bytes,
                "constants": {constant: getattr(roofline, constant) for constant in Roofline.CONSTANTS},
                "features": forest.features,
                **{field: getattr(forest, field) for field in _SUM},
                "half_width": calibration.half_width,
                "held_out": calibration.held_out,
            }
        )
        arrays |= {f"{index}.{field}": getattr(forest, field) for field in _NODES}
        arrays |= {f"{index}.{field}": getattr(model, field) for field in _HULL}
    document = {
        "format": FORMAT,
        "version": VERSION,
        "device": {"name": predictor.device.name, "multiprocessors": predictor.device.multiprocessors},
        "fitted_to": predictor.fitted_to,
        "sizes": list(SIZES),
        "kernels": kernels,
    }
    text = json.dumps(document, allow_nan=False).encode()
    with path.open("wb") as file:  # numpy would put .npz behind a name without it.
        np.savez_compressed(file, document=np.frombuffer(text, np.uint8), **arrays)  # type: ignore[arg-type]


# What numpy and zipfile raise for a damaged file; the header of an array is read as Python's literals.
_BROKEN = (
    zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, SyntaxError,
    tokenize.TokenError,
)  # fmt: skip


def load(path: Path) -> Content:
    """Read a predictor. Raises ValueError, naming the file and what is wrong, and OSError where it cannot be read."""
    with path.open("rb") as file:
        try:
            arrays = _arrays(file)
        except _BROKEN as error:
            raise ValueError(f"{path} is no predictor: {error}") from None
    try:
        return _predictor(arrays)
    except KeyError as error:
        raise ValueError(f"{path} is no predictor: it has no {error.args[0]}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no predictor: {error}") from None


def _arrays(file: Any) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > _LIMIT_BYTES:
        raise ValueError(f"it unpacks to {counted(size, 'byte')}, more than {_LIMIT_BYTES}")
    file.seek(0)
    with np.load(file, allow_pickle=False) as loaded:
        return {name: loaded[name] for name in loaded.files}


def _predictor(arrays: dict[str, np.ndarray]) -> Content:
    text = arrays.pop("document")
    if text.dtype != np.uint8 or text.ndim != 1:
        raise ValueError(f"its document is {text.dtype} {list(text.shape)}, not a text")
    document = json.loads(text.tobytes().decode())
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError("its document is of another format")
    if document["version"] != VERSION:
        raise ValueError(f"it is of version {document['version']}, and this is version {VERSION}; fit it again")
    if document["sizes"] != list(SIZES):
        raise ValueError(f"it knows the sizes {document['sizes']}, not {list(SIZES)}")
    device = Device(_text(document["device"], "name"), _whole(document["device"], "multiprocessors"))
    models, calibrations = {}, {}
    for index, kernel in enumerate(document["kernels"]):
        name = _text(kernel, "name")
        try:
            models[name] = _model(
                kernel, {field: arrays.pop(f"{index}.{field}") for field in (*_NODES, *_HULL)}, device
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        held_out, half_width = _text(kernel, "held_out"), _number(kernel, "half_width")
        if held_out not in ("families", "sizes") or half_width < 0:
            raise ValueError(f"{name}: an interval of {half_width} from held-out {held_out}")
        calibrations[name] = Calibration(half_width, held_out)
    if not models or len(models) != len(document["kernels"]):
        raise ValueError("it has no kernel, or one twice")
    if arrays:
        raise ValueError(f"nothing asks for its {', '.join(sorted(arrays))}")
    return Content(device, models, calibrations, _text(document, "fitted_to"))


def _model(kernel: Mapping[str, Any], arrays: Mapping[str, np.ndarray], device: Device) -> KernelModel:
    op, element_bytes = _text(kernel, "op"), _whole(kernel, "element_bytes")
    if op not in OPS or element_bytes not in ELEMENT_BYTES.values():
        raise ValueError(f"there is no op {op!r} of {element_bytes} bytes an element")
    constants = {name: _number(kernel["constants"], name) for name in Roofline.CONSTANTS}
    # Beyond these the estimate would not be monotone, or not finite.
    if constants["tile"] < 0 or constants["split"] < 0 or max(map(abs, constants.values())) > 100:
        raise ValueError(f"the constants {constants} are none of a fit")
    if abs(constants["sharpness"]) > 5:
        raise ValueError(f"sharpness is {constants['sharpness']}")
    roofline = Roofline(op, element_bytes, device.multiprocessors, **constants)
    fields: dict[str, Any] = {field: arrays[field] for field in _NODES}
    fields |= {field: _number(kernel, field) for field in _SUM}
    forest = Forest(**fields, features=_whole(kernel, "features"))
    forest.check()
    example = np.ones((1, len(SIZES)))
    example[0, WINDOW] = 1
    if forest.features != roofline.features(example).shape[1]:
        raise ValueError(
            f"its trees know {counted(forest.features, 'feature')}, not {roofline.features(example).shape[1]}"
        )
    for field in _HULL:
        hull = arrays[field]
        if hull.dtype != np.float64 or hull.shape != (len(SIZES) + 1,) or not np.isfinite(hull).all():
            raise ValueError(f"{field} is {hull.dtype} {list(hull.shape)}, not {len(SIZES) + 1} finite float64")
    return KernelModel(roofline, forest, arrays["smallest"], arrays["largest"])


def _number(where: Mapping[str, Any], name: str) -> float:
    value = where[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, not a finite number")
    return float(value)


def _whole(where: Mapping[str, Any], name: str) -> int:
    value = where[name]
    if type(value) is not int:
        raise ValueError(f"{name} is {value!r}, not a whole number")
    return value


def _text(where: Mapping[str, Any], name: str) -> str:
    value = where[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}, not a text")
    return value
