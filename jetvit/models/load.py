"""Models from what a user names: a HuggingFace folder or hub id, timm, their own factory, a `.pt2` or `.onnx` file."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from jetvit.files import load_exported
from jetvit.models.factory import load_factory
from jetvit.models.huggingface import load_hf
from jetvit.models.loaded import DEVICES, LoadedModel, both_sides, refuse_missing
from jetvit.models.timm_models import load_timm
from jetvit.patterns.errors import InputError

log = logging.getLogger("jetvit.models.load")

FORMS = "hf:DIR, hf:ORG/NAME, timm:NAME, pkg.module:factory, or a .pt2 or .onnx file"


def load_model(
    spec: str,
    *,
    weights: str | Path | None = None,
    model_args: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> LoadedModel:
    """Load the model that `spec` names.

    Args:
        spec: one of
            `hf:DIR`: a local HuggingFace folder (config.json and its weights); no code from the folder is run.
            `hf:ORG/NAME`, `hf:ORG/NAME@REVISION`: a model of the hub, from its local cache, or downloaded into it;
                safetensors only. A local folder of that name comes first.
            `timm:NAME`: a timm model, with `dynamic_img_size=True` where it has that.
            `pkg.module:factory`: imports and calls the user's code, and says so; the current folder is searched first.
            `FILE.pt2`: a program that torch.export or jetvit wrote.
            `FILE.onnx`: a model of any exporter; it becomes such a program.
        weights: a file for `read_weights`; takes the place of weights in the folder.
        model_args: arguments of the factory; for `hf:`, entries of the configuration, and `random=True` for random
            weights, which a timm model has wherever `weights` is not given.
        dtype: of the parameters; None is float32 (a factory's model keeps its own).
        device: where the model is moved.

    Raises:
        InputError: anything of the above that is not there, does not fit, or would run code from a data file.
    """
    args = dict(model_args or {})
    target = _device(device)
    if spec.startswith("hf:"):
        loaded = load_hf(spec, spec[3:], weights, args, dtype)
    elif spec.startswith("timm:"):
        loaded = load_timm(spec, spec[5:], weights, args, dtype)
    elif spec.endswith((".pt2", ".onnx")):
        return _load_program(spec, weights, args, dtype, target)
    elif re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", spec):
        loaded = load_factory(spec, weights, args, dtype)
    else:
        if bool(spec) and Path(spec).is_dir():
            advice = f"for a HuggingFace folder write hf:{spec}"
        elif spec.endswith(".py"):
            advice = f"for a function in that file write {Path(spec).stem}:FUNCTION, in its folder"
        elif re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
            advice = f"for a model of the Hugging Face hub write hf:{spec}"
        else:
            advice = f"for a timm model write timm:{spec}"
        raise InputError(f"{spec!r} names no model", why=f"a model is {FORMS}", do=advice)
    assert isinstance(loaded.model, nn.Module)
    loaded.model.eval().to(target)
    for note in loaded.notes:
        log.info("%s: %s", spec, note)
    return loaded


def parse_model_args(items: Iterable[str]) -> dict[str, Any]:
    """Read ["num_classes=0", "global_pool="] as {"num_classes": 0, "global_pool": ""}.

    A value is an int, a float, true, false or none, a JSON list, a JSON string ("7" in quotes is text), else text.

    Raises:
        InputError: no `=`, a key that is no Python name, a key twice, or a broken list or string.
    """
    args: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key.isidentifier():
            why = "it has no =" if not equals else f"{key!r} is no Python name"
            raise InputError(f"cannot read the model argument {item!r}", why=why, do="write --model-arg key=value")
        if key in args:
            raise InputError(f"the model argument {key!r} is given twice", do="give it once")
        args[key] = _value(text, item)
    return args


def _value(text: str, item: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    if re.fullmatch(r"[+-]?[0-9]+", text):
        return int(text)
    if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        return float(text)
    if text.startswith(("[", '"')):
        try:
            return json.loads(text)
        except ValueError as error:
            raise InputError(
                f"cannot read the model argument {item!r}",
                why=f"its value is no JSON: {error}",
                do="write a list as [1,2,3] and a text as it is",
            ) from error
    return text


def _device(device: str | torch.device) -> torch.device:
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"{device!r} is no device", why="torch knows none of that name", do=DEVICES) from error
    refuse_missing(target)
    return target


def _load_program(
    spec: str, weights: str | Path | None, args: dict[str, Any], dtype: torch.dtype | None, device: torch.device
) -> LoadedModel:
    given = {"--weights": weights is not None, "--model-arg": bool(args), "--dtype": dtype is not None}
    if any(given.values()):
        options = ", ".join(option for option, is_given in given.items() if is_given)
        raise InputError(
            f"{options} cannot change an exported program",
            why="its weights and dtypes are part of the file",
            where=spec,
            do="leave the option out, or load the model that the file was exported from",
        )
    if spec.endswith(".onnx"):
        from jetvit.passes.frontends.onnx import read_onnx

        program = read_onnx(spec)
    else:
        program = load_exported(spec)
    example_args, example_kwargs = program.example_inputs or ((), {})
    named: list[tuple[str | None, Any]] = [(None, value) for value in example_args]
    named += [(name, value) for name, value in example_kwargs.items() if isinstance(value, Tensor)]
    if len(named) > 1:
        raise InputError(
            "the program takes more than a batch of images",
            why=f"its inputs are {', '.join(program.graph_signature.user_inputs)}",
            where=spec,
            do="export it with one image tensor, and other inputs as keywords that are no tensors",
        )
    input_name, image = named[0] if named else (None, None)
    return LoadedModel(
        model=program if device.type == "cpu" else move_to_device_pass(program, device),
        spec=spec,
        kwargs={name: value for name, value in example_kwargs.items() if name != input_name},
        input_name=input_name,
        image_size=both_sides(tuple(image.shape[-2:])) if isinstance(image, Tensor) and image.ndim == 4 else None,
    )
