"""Models of a HuggingFace folder, local or of the hub: config.json and its weights. No code from the folder is run."""

from __future__ import annotations

import importlib
import inspect
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jetvit.models.hub import PROCESSORS, HubModel
from jetvit.models.loaded import LoadedModel, both_sides, import_package, reason, seeded, square_side
from jetvit.models.weights import check_fit, read_folder, read_weights, strip_prefixes
from jetvit.patterns.errors import InputError


def load_hf(
    spec: str, name: str, weights: str | Path | None, args: dict[str, Any], dtype: torch.dtype | None
) -> LoadedModel:
    """Load the model in a HuggingFace folder; the arguments are those of `load_model`.

    Args:
        spec: what the user wrote.
        name: a local folder with config.json and the weights, else ORG/NAME or ORG/NAME@REVISION of the hub.
        weights: a file that takes the place of the folder's weights.
        args: entries of the configuration; `random=True` for random weights.
        dtype: of the parameters; None is float32.

    Raises:
        InputError: as `load_model`.
    """
    random = args.pop("random", False)
    folder, found = _find_folder(name, weights=weights is None and not random)
    if not (folder / "config.json").is_file():
        why = "it has no config.json" if folder.is_dir() else "there is no such folder"
        raise InputError(
            f"{folder} is no HuggingFace folder",
            why=why,
            do="give a local folder with config.json and model.safetensors, or a model of the hub as hf:ORG/NAME",
        )
    transformers = import_package("transformers")
    with _offline_and_quiet(transformers):
        config = _hf_config(transformers, folder, args)
        model_class = _hf_class(transformers, config, folder)
        tensors, notes = _hf_tensors(model_class, config, folder, weights, random)
        try:
            if tensors is None:
                with seeded():
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
                why=reason(error),
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
    processor = _read_processor(folder)
    vision = getattr(config, "backbone_config", None) or config
    return LoadedModel(
        model=model,
        spec=spec,
        kwargs={"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {},
        mean=processor.mean,
        std=processor.std,
        patch_size=square_side(getattr(vision, "patch_size", None)),
        image_size=both_sides(getattr(vision, "image_size", None)),
        input_size=None if "image_size" in args else processor.size,
        random_weights=tensors is None,
        notes=found + notes,
    )


def find_hub_model(name: str) -> HubModel | None:
    """The model of the hub that `hf:name` stands for; None for a local folder, which comes first."""
    return None if Path(name).expanduser().is_dir() else HubModel.parse(name)


def _find_folder(name: str, *, weights: bool) -> tuple[Path, list[str]]:
    """The folder of a model, local or in the cache of the hub, and notes on which of the two was taken."""
    folder = Path(name).expanduser()
    if (model := find_hub_model(name)) is not None:
        return model.folder(weights=weights)
    if (model := HubModel.parse(name)) is None:
        return folder, []
    hub = f"hf:{model.repository}@{model.revision}"
    return folder, [f"took the local folder {name}, and not the hub's model of that name, which is {hub}"]


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


def _refuse_config(transformers: Any, path: Path) -> None:
    """Refuse a config.json that is damaged, or of a model type that transformers does not know, in our words."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read", why=f"it is no JSON: {error}", do="copy or download the folder again"
        ) from error
    model_type = entries.get("model_type") if isinstance(entries, dict) else None
    if isinstance(model_type, str) and model_type not in transformers.CONFIG_MAPPING:
        raise InputError(
            f"transformers {transformers.__version__} does not know the model type {model_type!r}",
            where=str(path),
            do="check that entry; a newer model may need a newer transformers; code in the folder is never run",
        )


def _hf_config(transformers: Any, folder: Path, args: dict[str, Any]) -> Any:
    _refuse_config(transformers, folder / "config.json")
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # json, key, value, type and validation errors: the file is anyone's
        raise InputError(
            f"{folder / 'config.json'} is no configuration that transformers {transformers.__version__} knows",
            why=reason(error),
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
            raise InputError(f"the model argument {key}={value} is refused", why=reason(error)) from error
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
        misfits=dict(_misfit(each, tensors, state) for each in info["mismatched_keys"]),
        unexpected={name: tensors[name].shape if name in tensors else () for name in info["unexpected_keys"]},
        model_names=state,
        where=where,
    )


def _misfit(entry: Any, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[str, str]:
    """The name of a weight of another shape, and both shapes. transformers 5 gives all three, 4.57 the name alone."""
    name, *shapes = (entry,) if isinstance(entry, str) else entry
    shapes = shapes or [each[name].shape if name in each else None for each in (tensors, state)]
    given, mine = ("another shape" if shape is None else list(shape) for shape in shapes)
    return name, f"{given} in the file, {mine} in the model"


class Processor(NamedTuple):
    """A model's image processor: the (height, width) of its images, and how they are normalised from 0–1.

    Fields that the processor does not specify are None.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def _read_processor(folder: Path) -> Processor:
    """Read preprocessor_config.json, or the image processor of processor_config.json."""
    for name in PROCESSORS:
        file = folder / name
        if not file.is_file():
            continue
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            if name == "processor_config.json":
                config = config.get("image_processor") or {}
            return Processor(_processor_size(config), *_normalisation(config))
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{file} is no image configuration", why=reason(error), do="fix the file or remove it"
            ) from error
    return Processor()


def _processor_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """The (height, width) of every image; None where it depends on the image."""
    size = config.get("size") if config.get("do_resize", True) else None
    if config.get("crop_size") and config.get("do_center_crop", True):
        size = config["crop_size"]
    if isinstance(size, Mapping):
        size = [size.get("height"), size.get("width")]
    return both_sides(size)


def _normalisation(config: Mapping[str, Any]) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation for images on the scale 0–1; a processor may scale 0–255 to another range."""
    scale = float(config.get("rescale_factor") or 1 / 255) * 255 if config.get("do_rescale", True) else 255.0
    if config.get("do_normalize") is False:
        return (0.0,) * 3, (_divided(1.0, scale),) * 3
    if config.get("image_mean") is None or config.get("image_std") is None:
        return None, None
    mean, std = (tuple(float(value) for value in config[key]) for key in ("image_mean", "image_std"))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or scale <= 0:
        raise ValueError(f"image_mean {mean} and image_std {std} are not three numbers each, the latter above 0")
    return tuple(_divided(value, scale) for value in mean), tuple(_divided(value, scale) for value in std)


def _divided(value: float, scale: float) -> float:
    return value if math.isclose(scale, 1) else value / scale
