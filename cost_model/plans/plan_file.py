"""A plan on disk: reading what a stranger may have written, and writing so that a crash leaves the old or the new.

A plan is a folder with `plan.json` and, if it has weights, `weights.safetensors`. The rename of plan.json is the
commit: it holds the sha256 of its weights, which lie beside it as `weights.safetensors.next` until then. A crash
between the commit and the last rename leaves them there, and both reading and the next writing look there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from jetvit.cost_model.files.whole_file import FREE_SPACE
from jetvit.patterns.errors import PlanError
from jetvit.patterns.resources import disk_full

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
PLAN_FILE = "plan.json"
WEIGHTS_FILE = "weights.safetensors"

_NEXT = ".next"
PLAN_FILES = frozenset(name + suffix for name in (PLAN_FILE, WEIGHTS_FILE) for suffix in ("", _NEXT))
"""The names that a plan's folder may hold."""
_MAX_JSON_BYTES = 64 << 20
_LINE = 120


def read(path: str | os.PathLike[str]) -> tuple[Path, dict[str, Any], dict[str, Tensor]]:
    """Read a plan's folder, or its plan.json: the path of plan.json, its validated content, and the tensors.

    Raises `PlanError` that names the file, the place in it and what to do. Nothing is unpickled.
    """
    file, document = _read_json(Path(path))
    validate(document, str(file))
    with unchecked(str(file)):
        sha256 = None if document["weights"] is None else document["weights"]["sha256"]
    return file, document, {} if sha256 is None else _read_weights(file.parent, sha256)


def write(folder: str | os.PathLike[str], document: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write `document`, whose `weights` this function fills in, and `tensors` as a plan's folder.

    Raises `PlanError` if the document is not valid or the folder cannot be written; then what was there stays.
    """
    validate(document | {"weights": None}, "the plan to save")
    data = _serialize(tensors) if tensors else None
    weights = None if data is None else {"sha256": hashlib.sha256(data).hexdigest()}
    text = pretty(document | {"weights": weights}) + "\n"
    target = Path(folder)
    try:
        _write_staged(target, text.encode(), data)
    except OSError as error:
        advice = FREE_SPACE if disk_full(error) else "name a folder that can be written"
        raise PlanError("the plan cannot be saved", why=str(error), where=str(target), do=advice) from error


def _write_staged(target: Path, text: bytes, data: bytes | None) -> None:
    """Write plan.json and the weights into the folder `target`, which a failure leaves as it was."""
    is_new = not target.exists()
    staged_plan, staged_weights = target / (PLAN_FILE + _NEXT), target / (WEIGHTS_FILE + _NEXT)
    target.mkdir(parents=True, exist_ok=True)
    if _is_committed(staged_weights):
        staged_weights.replace(target / WEIGHTS_FILE)
    try:
        if data is not None:
            _write_bytes(staged_weights, data)
        _write_bytes(staged_plan, text)
        staged_plan.replace(target / PLAN_FILE)
    except BaseException:
        staged_plan.unlink(missing_ok=True)
        if not _is_committed(staged_weights):
            staged_weights.unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):
                target.rmdir()
        raise
    if data is not None:
        staged_weights.replace(target / WEIGHTS_FILE)
    else:
        (target / WEIGHTS_FILE).unlink(missing_ok=True)
    _sync(target)


def validate(document: Any, where: str) -> None:
    """Raise `PlanError` with the JSON path if `document` is not what plan_schema.json says; `where` names its file."""
    version = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise PlanError(
            "the plan is from a newer jetvit",
            why=f"its schema version is {version}; this jetvit knows {SCHEMA_VERSION}",
            where=f"{where}, $.schema_version",
            do="upgrade jetvit",
        )
    try:
        from jsonschema.exceptions import best_match
    except ImportError:  # a GPU machine may have torch and little else
        log.warning("jsonschema is not installed: %s is not checked against the schema of plans", where)
        return
    try:
        error = best_match(_validator().iter_errors(document))
    except RecursionError:
        raise _broken(where, "it is nested too deeply") from None
    if error is not None:
        raise PlanError(
            "the plan is not valid",
            why=_shorten(error.message),
            where=f"{where}, {error.json_path}",
            do="correct that place, or make the plan again",
        )


@contextmanager
def unchecked(where: str) -> Iterator[None]:
    """Raise `PlanError` for a document that turns out not to be a plan: without jsonschema `validate` lets it pass."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        why = f"it is not what a plan should be ({type(error).__name__}: {_shorten(str(error))})"
        raise _broken(where, why) from error


def pretty(value: Any, indent: int = 0) -> str:
    """JSON text of `value` in which whatever fits on a line stands on one."""
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if len(flat) + indent <= _LINE or not isinstance(value, dict | list) or not value:
        return flat
    margin = " " * (indent + 2)
    if isinstance(value, dict):
        items = [f"{json.dumps(key, ensure_ascii=False)}: {pretty(item, indent + 2)}" for key, item in value.items()]
        return "{\n" + ",\n".join(margin + item for item in items) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(margin + pretty(item, indent + 2) for item in value) + "\n" + " " * indent + "]"


@cache
def _validator() -> Any:
    """The schema's validator, for which a number is a finite one that fits into 64 bits or a double."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    def is_number(_: object, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return abs(value) <= 1 << 64 if isinstance(value, int) else math.isfinite(value)

    def is_integer(checker: object, value: object) -> bool:
        return is_number(checker, value) and (
            isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        )

    checker = Draft202012Validator.TYPE_CHECKER.redefine_many({"number": is_number, "integer": is_integer})
    schema = json.loads(Path(__file__).with_name("plan_schema.json").read_text(encoding="utf-8"))
    return extend(Draft202012Validator, type_checker=checker)(schema)


def _read_json(path: Path) -> tuple[Path, Any]:
    """The path of plan.json and what is in it, not validated yet."""
    file = path
    try:
        if path.is_dir():
            file = path / PLAN_FILE
        if not file.exists():
            raise PlanError(
                "there is no plan",
                where=str(file),
                do="name the folder that Plan.save or `jetvit calibrate` wrote",
            )
        if not file.is_file():
            raise _broken(str(file), "it is no regular file")
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise _broken(str(file), f"it is larger than {_MAX_JSON_BYTES >> 20} MiB")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise _broken(str(file), error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise _broken(str(file), "it is not UTF-8 text") from error
    try:
        return file, json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise _broken(str(file), "it is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError is one, and so is a number of more than 4300 digits.
        raise _broken(str(file), str(error)) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand once: of two, JSON does not say which one counts."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return record


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _shorten(message: str) -> str:
    """The two ends of a message: what is wrong may stand behind a long value."""
    return message if len(message) <= 200 else f"{message[:100]} … {message[-100:]}"


def _broken(where: str, why: str) -> PlanError:
    return PlanError("the plan cannot be read", why=why, where=where, do="copy the plan again, or make a new one")


def _read_weights(folder: Path, sha256: str) -> dict[str, Tensor]:
    file = folder / WEIGHTS_FILE
    try:
        held = [path for path in (file, folder / (WEIGHTS_FILE + _NEXT)) if path.is_file()]
        right = next((path for path in held if _sha256(path) == sha256), None)
        if right is not None:
            return safetensors_torch.load_file(right)
    except (OSError, SafetensorError) as error:
        raise PlanError(
            "the weights of the plan cannot be read",
            why=str(error),
            where=str(file),
            do="copy the plan again, or make a new one",
        ) from error
    if not held:
        raise PlanError(
            "the weights of the plan are missing",
            why=f"{PLAN_FILE} says that there are some",
            where=str(file),
            do="copy the whole folder of the plan, not only its plan.json",
        )
    raise PlanError(
        "the weights are not those that the plan was saved with",
        why=f"their sha256 is not the one in {PLAN_FILE}; the file was cut off, changed, or is another plan's",
        where=f"{file}, $.weights.sha256",
        do="copy the whole folder of the plan again",
    )


def _is_committed(staged: Path) -> bool:
    """Report whether plan.json names the staged weights: a save was interrupted after its commit."""
    if not staged.is_file():
        return False
    try:
        _, document = _read_json(staged.with_name(PLAN_FILE))
        return document["weights"]["sha256"] == _sha256(staged)
    except (PlanError, OSError, LookupError, TypeError):
        return False  # No plan that could be lost, or one without weights.


def _serialize(tensors: Mapping[str, Tensor]) -> bytes:
    try:
        # safetensors takes neither views nor two names for one storage.
        copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in sorted(tensors.items())}
        return safetensors_torch.save(copies)
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise PlanError(
            "the weights of the plan cannot be saved",
            why=f"safetensors does not take them: {error}",
            where=WEIGHTS_FILE,
            do="make them dense tensors with data, of a dtype that safetensors knows",
        ) from error


def _write_bytes(path: Path, data: bytes) -> None:
    # Not safetensors' save_file: that makes files which only their owner can read.
    path.unlink(missing_ok=True)  # A link there must not lead the writing out of the folder.
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows has no way to flush a folder.
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
