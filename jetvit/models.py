"""Models from what a user names: a HuggingFace folder, a timm name, a factory of the user's own, or a `.pt2` file."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import logging
import re
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
from jetvit.weights import check_fit, copy_weights, read_folder, read_weights, resample_pos_embed, strip_prefixes

log = logging.getLogger("jetvit.models")

SEED = 0  # of random weights, so that runs repeat
FORMS = "hf:DIR, timm:NAME, pkg.module:factory, or a .pt2 file"


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode (an exported program as it was exported), and what its configuration says about its input.

    `kwargs` are the keyword inputs of its forward besides the images. `input_name` is the keyword that takes the
    images, None where they come first by position. `mean` and `std` normalise images on the scale 0–1; `image_size`
    is the (height, width) in pixels that it was configured or exported for. What the model does not tell is None.
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
            `hf:DIR`: a local HuggingFace folder (config.json and its weights); no hub, no code from the folder.
            `timm:NAME`: a timm model, with `dynamic_img_size=True` where it has that.
            `pkg.module:factory`: imports and calls the user's code, and says so.
            `FILE.pt2`: a program that torch.export or jetvit wrote.
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
        loaded = _load_hf(spec, Path(spec[3:]).expanduser(), weights, args, dtype)
    elif spec.startswith("timm:"):
        loaded = _load_timm(spec, spec[5:], weights, args, dtype)
    elif spec.endswith(".onnx"):
        raise InputError(
            "ONNX input is not supported yet",
            where=spec,
            do=f"load the model it was made from: {FORMS}",
        )
    elif spec.endswith(".pt2"):
        return _load_pt2(spec, weights, args, dtype, target)
    elif re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", spec):
        loaded = _load_factory(spec, weights, args, dtype)
    else:
        folder = bool(spec) and Path(spec).is_dir()
        raise InputError(
            f"{spec!r} names no model",
            why=f"a model is {FORMS}",
            do=f"for a HuggingFace folder write hf:{spec}" if folder else f"for a timm model write timm:{spec}",
        )
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
        raise InputError(f"{device!r} is no device", why=_why(error), do="use cpu, cuda or cuda:N") from error
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"the device {device} is not there",
            why=f"torch sees {torch.cuda.device_count()} CUDA devices",
            do="use --device cpu, or a torch built for this machine's GPU",
        )
    return target


@contextmanager
def _seeded() -> Iterator[None]:
    """Random weights that repeat, without touching the caller's random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        yield


def _import(name: str) -> Any:
    """Import timm or transformers."""
    from jetvit.torchvision_shim import ensure_torchvision

    ensure_torchvision()  # both import torchvision, which may be there without its operators
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"cannot import {name}", why=str(error), do='pip install "jetvit[models]"') from error


def _why(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return type(error).__name__ + (f": {text[:300]}" if text else "")


# HuggingFace


def _load_hf(
    spec: str, folder: Path, weights: str | Path | None, args: dict[str, Any], dtype: torch.dtype | None
) -> LoadedModel:
    random = args.pop("random", False)
    if not (folder / "config.json").is_file():
        why = "it has no config.json" if folder.is_dir() else "there is no such folder"
        raise InputError(
            f"{folder} is no HuggingFace folder",
            why=why,
            do="give a local folder with config.json and model.safetensors; nothing is fetched from the hub",
        )
    transformers = _import("transformers")
    with _offline_and_quiet(transformers):
        config = _hf_config(transformers, folder, args)
        model_class = _hf_class(transformers, config, folder)
        tensors, notes = _hf_tensors(model_class, config, folder, weights, random)
        try:
            if tensors is None:
                with _seeded():
                    model, info = model_class._from_config(config, dtype=dtype or torch.float32), None
            else:
                # Its own loader, for it knows the names that older versions of the library gave to these weights.
                model, info = model_class.from_pretrained(
                    None,
                    config=config,
                    state_dict=tensors,
                    dtype=dtype or torch.float32,
                    local_files_only=True,
                    ignore_mismatched_sizes=True,  # they are in `info`, and refused below with all others
                    output_loading_info=True,
                )
        except Exception as error:  # the configuration is anyone's: shapes, types and names can all be wrong
            raise InputError(
                f"transformers could not build {model_class.__name__}",
                why=_why(error),
                where=str(folder / "config.json"),
                do="check config.json and every --model-arg",
            ) from error
    if info is not None and tensors is not None:
        notes += _check_loading_info(model, info, tensors, weights or folder)
    parameters = inspect.signature(model.forward).parameters
    if next(iter(parameters), None) != "pixel_values":
        raise InputError(
            f"{model_class.__name__} is no vision model",
            why=f"its first input is {next(iter(parameters), 'none')}, not pixel_values",
            where=str(folder),
            do="give the folder of an image model",
        )
    mean, std = _hf_normalisation(folder)
    vision = getattr(config, "backbone_config", None) or config
    return LoadedModel(
        model=model,
        spec=spec,
        kwargs={"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {},
        mean=mean,
        std=std,
        patch_size=_side(getattr(vision, "patch_size", None)),
        image_size=_sides(getattr(vision, "image_size", None)),
        random_weights=tensors is None,
        notes=notes,
    )


@contextmanager
def _offline_and_quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers off the hub, and its progress bars and reports off the screen: problems come as our errors."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    logging_ = transformers.utils.logging
    offline, verbosity, bars = constants.HF_HUB_OFFLINE, logging_.get_verbosity(), logging_.is_progress_bar_enabled()
    constants.HF_HUB_OFFLINE = True  # the environment variable is read only once, when the hub's library is imported
    logging_.set_verbosity_error()
    logging_.disable_progress_bar()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging_.set_verbosity(verbosity)
        if bars:
            logging_.enable_progress_bar()


def _hf_config(transformers: Any, folder: Path, args: dict[str, Any]) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # json, key, value, type and validation errors: the file is anyone's
        raise InputError(
            f"{folder / 'config.json'} is no configuration that transformers {transformers.__version__} knows",
            why=_why(error),
            do="check the file; a newer model may need a newer transformers; code in the folder is never run",
        ) from error
    if getattr(config, "quantization_config", None) is not None:
        raise InputError("quantised weights are not supported", where=str(folder), do="use the unquantised model")
    for key, value in args.items():
        # Set on the object, not passed to the loader: its keywords reach the hub and remote code.
        name = "_attn_implementation" if key == "attn_implementation" else key
        if key.startswith("_") or not hasattr(config, name) or (key != name and value not in ("eager", "sdpa")):
            raise InputError(
                f"the model argument {key}={value} is not for {type(config).__name__}",
                where=str(folder / "config.json"),
                do="name an entry of config.json, attn_implementation=eager|sdpa, or random=true",
            )
        try:
            setattr(config, name, value)
        except Exception as error:  # transformers validates some entries, each version with errors of its own
            raise InputError(f"the model argument {key}={value} is refused", why=_why(error)) from error
    return config


def _hf_class(transformers: Any, config: Any, folder: Path) -> Any:
    names = getattr(config, "architectures", None) or []
    if names:
        found = getattr(transformers, str(names[0]), None)
        if inspect.isclass(found) and issubclass(found, transformers.PreTrainedModel):
            return found
    elif type(config) in transformers.AutoModel._model_mapping:
        return transformers.AutoModel._model_mapping[type(config)]
    raise InputError(
        f"transformers {transformers.__version__} has no model class for this folder",
        why=f"config.json names the architecture {names[0] if names else 'of ' + type(config).__name__}",
        where=str(folder),
        do="a newer transformers may have it; code in the folder is never run",
    )


def _hf_tensors(
    model_class: Any, config: Any, folder: Path, weights: str | Path | None, random: bool
) -> tuple[dict[str, Tensor] | None, list[str]]:
    """The weights to load and notes about them; None for random weights."""
    if weights is not None:
        tensors = read_weights(weights)
        with torch.device("meta"):
            expected = model_class._from_config(config).state_dict()
        return strip_prefixes(tensors, expected), [f"weights from {weights}"]
    if random:
        return None, ["random weights: latency is real, quality is not"]
    found = read_folder(folder)
    if found is None:
        raise InputError(
            f"{folder} holds no weights",
            why="it has config.json, but no model.safetensors and no index of shards",
            do="pass --weights F, or --model-arg random=true for random weights",
        )
    return found, []


def _check_loading_info(
    model: nn.Module, info: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str | Path
) -> list[str]:
    state = model.state_dict()
    if info.get("error_msgs"):
        raise InputError(
            "transformers could not load the weights", why="; ".join(info["error_msgs"])[:500], where=str(where)
        )
    return check_fit(
        missing={name: state[name].shape for name in info["missing_keys"] if name in state},
        misfits={
            n: f"{list(given)} in the file, {list(mine)} in the model" for n, given, mine in info["mismatched_keys"]
        },
        unexpected={name: tensors[name].shape if name in tensors else () for name in info["unexpected_keys"]},
        model_names=state,
        where=where,
    )


def _hf_normalisation(folder: Path) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation from preprocessor_config.json, None where it has none."""
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return None, None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if config.get("do_normalize") is False:
            return (0.0,) * 3, (1.0,) * 3
        if config.get("image_mean") is None or config.get("image_std") is None:
            return None, None
        mean, std = (tuple(float(value) for value in config[key]) for key in ("image_mean", "image_std"))
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"image_mean {mean} and image_std {std} are not three numbers each, the latter above 0")
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} is no image configuration", why=_why(error), do="fix the file or remove it"
        ) from error
    return mean, std


# timm


def _load_timm(
    spec: str, name: str, weights: str | Path | None, args: dict[str, Any], dtype: torch.dtype | None
) -> LoadedModel:
    timm = _import("timm")
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
        with _seeded():
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
            why=_why(error),
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
        patch_size=_side(getattr(embed, "patch_size", None)),
        image_size=_sides(getattr(embed, "img_size", None) or (config.get("input_size") or (None,))[1:]),
        random_weights=weights is None,
        notes=notes,
    )


# The user's own code


def _load_factory(
    spec: str, weights: str | Path | None, args: dict[str, Any], dtype: torch.dtype | None
) -> LoadedModel:
    module_name, _, factory_name = spec.partition(":")
    log.warning("running your code: %s", spec)
    factory = _find_factory(module_name, factory_name)
    try:
        with _seeded():
            model = factory(**args)
    except Exception as error:
        raise InputError(
            f"{spec} raised an error",
            why=_why(error),
            where=_place(error),
            do=f"check the function and its arguments ({', '.join(args) or 'none were given'})",
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
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        raise InputError(
            f"cannot import {module_name}",
            why=_why(error),
            where="" if absent else _place(error),
            do="put the folder that holds it on PYTHONPATH" if absent else "fix the module so that it imports",
        ) from error
    found: Any = module
    for part in factory_name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
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


def _load_pt2(
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
    program = load_exported(spec)
    example_args, example_kwargs = program.example_inputs or ((), {})
    named: list[tuple[str | None, Any]] = [(None, value) for value in example_args]
    named += [(name, value) for name, value in example_kwargs.items() if isinstance(value, Tensor)]
    if len(named) > 1:
        raise InputError(
            "the program takes more than a batch of images",
            why=f"its inputs are {', '.join(name or '(by position)' for name, _ in named)}",
            where=spec,
            do="export it with one image tensor, and other inputs as keywords that are no tensors",
        )
    input_name, image = named[0] if named else (None, None)
    return LoadedModel(
        model=program if device.type == "cpu" else move_to_device_pass(program, device),
        spec=spec,
        kwargs={name: value for name, value in example_kwargs.items() if name != input_name},
        input_name=input_name,
        image_size=_sides(tuple(image.shape[-2:])) if isinstance(image, Tensor) and image.ndim == 4 else None,
    )


def _side(value: Any) -> int | None:
    """A patch's side in pixels; None where it is unknown or not square."""
    sides = _sides(value)
    return sides[0] if sides is not None and sides[0] == sides[1] else None


def _sides(value: Any) -> tuple[int, int] | None:
    """(height, width) of an int or a pair; None for anything else."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return value[0], value[1]
    return None
