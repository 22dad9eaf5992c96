"""Models from what a user names: a HuggingFace folder or hub id, timm, their own factory, a `.pt2` or `.onnx` file."""

from __future__ import annotations

import difflib
import importlib
import json
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from jetvit.files import load_exported
from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted
from jetvit.torchvision_shim import ensure_torchvision
from jetvit.weights import copy_weights, read_weights, resample_pos_embed, strip_prefixes

log = logging.getLogger("jetvit.models")

SEED = 0  # of random weights, so that runs repeat
FORMS = "hf:DIR, hf:ORG/NAME, timm:NAME, pkg.module:factory, or a .pt2 or .onnx file"
DEVICES = "use cpu, cuda or cuda:N"


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode (an exported program as it was exported), and what its configuration says about its input.

    `kwargs` are the keyword inputs of its forward besides the images. `input_name` is the keyword that takes the
    images, None where they come first by position. `mean` and `std` normalise images on the scale 0–1; `image_size`
    is the (height, width) in pixels that it was configured or exported for, `input_size` that of the images that its
    own processor makes. Fields that the model does not specify are None.
    `random_weights`: its latency is real, its outputs mean nothing. `notes` are sentences that the user should see.
    """

    model: nn.Module | ExportedProgram
    spec: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    input_name: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    patch_size: int | None = None
    image_size: tuple[int, int] | None = None
    input_size: tuple[int, int] | None = None
    random_weights: bool = False
    notes: list[str] = field(default_factory=list)

    def inputs(self, images: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The (args, kwargs) of a forward over `images` [B, 3, H, W]."""
        if self.input_name is None:
            return (images,), dict(self.kwargs)
        return (), {self.input_name: images, **self.kwargs}


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
        from jetvit.hf_models import load_hf  # which builds on this file

        loaded = load_hf(spec, spec[3:], weights, args, dtype)
    elif spec.startswith("timm:"):
        loaded = _load_timm(spec, spec[5:], weights, args, dtype)
    elif spec.endswith((".pt2", ".onnx")):
        return _load_program(spec, weights, args, dtype, target)
    elif re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", spec):
        loaded = _load_factory(spec, weights, args, dtype)
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


def refuse_missing(device: torch.device) -> None:
    """Raise InputError for a GPU that torch does not see."""
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"the device {device} is not there",
            why=f"torch sees {counted(torch.cuda.device_count(), 'CUDA device')}",
            do="use --device cpu, or a torch built for this machine's GPU",
        )


@contextmanager
def seeded() -> Iterator[None]:
    """Random weights that repeat, without touching the caller's random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        yield


def import_package(name: str) -> Any:
    """Import timm or transformers."""
    ensure_torchvision()  # both import torchvision, which may be there without its operators
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"cannot import {name}", why=str(error), do='pip install "jetvit[models]"') from error


def reason(error: BaseException) -> str:
    """The type of an error and the start of its message, on one line."""
    text = " ".join(str(error).split())
    return type(error).__name__ + (f": {text[:300]}" if text else "")


# timm


def _load_timm(
    spec: str, name: str, weights: str | Path | None, args: dict[str, Any], dtype: torch.dtype | None
) -> LoadedModel:
    timm = import_package("timm")
    for key in ("pretrained", "checkpoint_path"):  # one would fetch weights, the other load them unchecked
        if key in args:
            raise InputError(f"the model argument {key} is not supported", do="pass --weights F instead")
    if not timm.is_model(name):  # also keeps timm's own "hf-hub:…" and "local-dir:…" out
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        raise InputError(
            f"timm {timm.__version__} has no model {name!r}",
            why=f"the nearest names are {', '.join(close)}" if close else "no name is near it",
            do="list them with python -c \"import timm; print(timm.list_models('*vit*'))\"",
        )

    def build(**extra: Any) -> nn.Module:
        with seeded():
            return timm.create_model(name, pretrained=False, **{**extra, **args})

    try:
        try:
            model = build(dynamic_img_size=True)
        except TypeError as error:
            if "dynamic_img_size" not in str(error) or "dynamic_img_size" in args:
                raise
            model = build()
    except Exception as error:  # model classes check their arguments each in its own way
        raise InputError(
            f"timm could not build {name}",
            why=reason(error),
            do="check every --model-arg against the model class" if args else "check the name and its tag",
        ) from error
    if dtype is not None:
        model.to(dtype)
    notes = ["random weights: latency is real, quality is not"] if weights is None else []
    if weights is not None:
        tensors = strip_prefixes(read_weights(weights), model.state_dict())
        notes += resample_pos_embed(model, tensors)
        notes += copy_weights(model, tensors, weights)
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    embed = getattr(model, "patch_embed", None)
    return LoadedModel(
        model=model,
        spec=spec,
        mean=tuple(config["mean"]) if config.get("mean") else None,
        std=tuple(config["std"]) if config.get("std") else None,
        patch_size=square_side(getattr(embed, "patch_size", None)),
        image_size=both_sides(getattr(embed, "img_size", None) or (config.get("input_size") or (None,))[1:]),
        random_weights=weights is None,
        notes=notes,
    )


# The user's own code


def _load_factory(
    spec: str, weights: str | Path | None, args: dict[str, Any], dtype: torch.dtype | None
) -> LoadedModel:
    module_name, _, factory_name = spec.partition(":")
    log.warning("running your code: %s", spec)
    ensure_torchvision()  # the user's code may import it, or what imports it
    factory = _find_factory(module_name, factory_name)
    try:
        with seeded():
            model = factory(**args)
    except Exception as error:
        raise InputError(
            f"{spec} raised an error",
            why=reason(error),
            where=_place(error),
            do=f"check the function and its arguments ({', '.join(args) or 'none were given'}), which are given as "
            "--model-arg KEY=VALUE",
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{spec} returned no model", why=f"it is of type {type(model).__name__}", do="return a torch.nn.Module"
        )
    if dtype is not None:
        model.to(dtype)
    notes = [f"ran your code: {spec}"]
    if weights is not None:
        tensors = strip_prefixes(read_weights(weights), model.state_dict())
        notes += copy_weights(model, tensors, weights)
    return LoadedModel(model=model, spec=spec, notes=notes)


def _find_factory(module_name: str, factory_name: str) -> Callable[..., Any]:
    if not sys.flags.safe_path and not {"", str(Path.cwd())} & set(sys.path):
        # A console script has its own folder there; `python -m jetvit` has this one.
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        raise InputError(
            f"cannot import {module_name}",
            why=reason(error),
            where="" if absent else _place(error),
            do="go to the folder that holds it, or put it on PYTHONPATH; `jetvit --help` lists the forms of MODEL"
            if absent
            else "fix the module so that it imports",
        ) from error
    found: Any = module
    for part in factory_name.split("."):
        found = getattr(found, part, None)
    if found is not None and not callable(found):
        raise InputError(
            f"{module_name}:{factory_name} is no function",
            why=f"it is of type {type(found).__name__}",
            where=str(getattr(module, "__file__", "")),
            do="name a function or class that returns the model",
        )
    if found is None:
        close = difflib.get_close_matches(factory_name, [n for n in dir(module) if callable(getattr(module, n))], n=3)
        raise InputError(
            f"{module_name} has no function {factory_name}",
            where=str(getattr(module, "__file__", "")),
            do=f"name a function or class that returns the model{', such as ' + ', '.join(close) if close else ''}",
        )
    return found


def _place(error: BaseException) -> str:
    """File and line of the user's code that raised; "" where the call itself failed."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return "" if frame.filename == __file__ else f"{frame.filename}:{frame.lineno}"


# Exported programs


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
        from jetvit.passes.from_onnx import read_onnx

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


def square_side(value: Any) -> int | None:
    """A patch's side in pixels; None where it is unknown or not square."""
    sides = both_sides(value)
    return sides[0] if sides is not None and sides[0] == sides[1] else None


def both_sides(value: Any) -> tuple[int, int] | None:
    """(height, width) of an int or a pair; None for anything else."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return value[0], value[1]
    return None
