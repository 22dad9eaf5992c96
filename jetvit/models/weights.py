"""Reading weight files as data, and fitting them to a model without guessing."""

from __future__ import annotations

import json
import logging
import math
import pickle
import re
from collections.abc import Collection, Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from jetvit.cost_model.files.file_content import TRUNCATED, is_truncated, refuse_unsafe, repair
from jetvit.patterns.errors import InputError
from jetvit.patterns.wording import counted

log = logging.getLogger("jetvit.models.weights")

WRAPPERS = ("state_dict", "model", "teacher")  # what training programs put the weights under
PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.")  # what DDP, trainers and torch.compile put before names
HEADS = ("head", "head_dist", "fc", "classifier")  # classifier heads that a backbone may leave unused
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SHOWN = 5  # tensors named in one message


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a `.safetensors`, `.pt`, `.pth` or `.bin` file into tensors on the CPU by name; all values are finite.

    The last three load with `weights_only=True`, and {"state_dict" | "model" | "teacher": {…}} is unwrapped.

    Raises:
        InputError: no such file, another suffix, a broken file, one that holds more than tensors, a NaN or Inf.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weight file {path}", do="check the path of --weights")
    refuse_unsafe(path)
    if path.suffix == ".safetensors":
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise _broken(path, error) from error
    elif path.suffix in (".pt", ".pth", ".bin"):
        tensors = _unwrap(_torch_load(path), path)
    else:
        raise InputError(
            f"cannot read weights from {path}",
            why=f"the suffix {path.suffix!r} is none of .safetensors, .pt, .pth, .bin",
            do="save the state dict with safetensors.torch.save_file",
        )
    _check_finite(tensors, path)
    return tensors


def read_folder(folder: str | Path) -> dict[str, Tensor] | None:
    """Read the weights of a HuggingFace folder, whole or in shards, into tensors by name; None where it has none.

    Raises:
        InputError: as `read_weights`, an index that is broken, or a shard that is missing or outside the folder.
    """
    folder = Path(folder)
    name = next((name for name in FOLDER_FILES if (folder / name).is_file()), None)
    if name is None:
        return None
    if not name.endswith(".index.json"):
        return read_weights(folder / name)
    index = folder / name
    shards = read_shards(index)
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if not (folder / shard).is_file():
            raise InputError(
                f"the shard {shard} is missing",
                why=f"{index.name} lists {counted(len(shards), 'shard')}",
                where=str(folder),
                do="download the missing file into the folder",
            )
        tensors.update(read_weights(folder / shard))
    return tensors


def read_shards(index: Path) -> list[str]:
    """Read the names of the weight files that an index of shards lists.

    Raises:
        InputError: the file is no such index, or a name leaves the folder.
    """
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{index} is no index of shards", why=f"{type(error).__name__}: {error}", do="copy the folder again"
        ) from error
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise InputError(f"the shard {shard!r} leaves its folder", where=str(index), do="copy the folder again")
    return shards


def strip_prefixes(tensors: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Take common prefixes ("module.", "backbone.", …) off the names, where more of them are then in `expected`."""
    best, best_hits = dict(tensors), sum(name in expected for name in tensors)
    chains = {"".join(chain) for length in (1, 2, 3) for chain in product(PREFIXES, repeat=length)}
    for chain in sorted(chains):
        if not any(name.startswith(chain) for name in tensors):
            continue
        renamed = {name.removeprefix(chain): tensor for name, tensor in tensors.items()}
        hits = sum(name in expected for name in renamed)
        if hits > best_hits and len(renamed) == len(tensors):  # two names that become one would lose a tensor
            best, best_hits = renamed, hits
            log.info("took the prefix %r off the weight names", chain)
    return best


def copy_weights(model: nn.Module, tensors: Mapping[str, Tensor], where: str | Path) -> list[str]:
    """Copy `tensors` into `model`, cast to its dtypes; every tensor of the model's state dict must be there.

    Returns:
        Notes: the unused classifier head, if there is one.

    Raises:
        InputError: see `check_fit`.
    """
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    missing = {name: value.shape for name, value in state.items() if name not in tensors}
    unexpected = {name: value.shape for name, value in tensors.items() if name not in state}
    misfits = {}
    for name in state.keys() & tensors.keys():
        mine, given = state[name], tensors[name]
        if mine.shape != given.shape:
            misfits[name] = f"{list(given.shape)} in the file, {list(mine.shape)} in the model"
        elif mine.is_floating_point() != given.is_floating_point():  # a quantised file would be cast to nonsense
            misfits[name] = f"{given.dtype} in the file, {mine.dtype} in the model"
    notes = check_fit(missing, misfits, unexpected, state, where)
    model.load_state_dict({name: tensors[name] for name in state}, strict=False)
    return notes


def check_fit(
    missing: Mapping[str, Iterable[int]],
    misfits: Mapping[str, str],
    unexpected: Mapping[str, Iterable[int]],
    model_names: Iterable[str],
    where: str | Path,
) -> list[str]:
    """Refuse weights that do not fit; a classifier head that the model has no place for is a note.

    Args:
        missing: shapes of the tensors that the model has and the file has not, by name.
        misfits: what is wrong with a tensor of another shape or kind, by name.
        unexpected: shapes of the tensors that the file has and the model has not, by name.
        model_names: names in the model's state dict.
        where: the file or folder, for the message.

    Returns:
        Notes, one or none.

    Raises:
        InputError: anything missing, misshapen, or unexpected beyond an unused head; the first few are named.
    """
    roots = {name.split(".", 1)[0] for name in model_names}
    head = sorted(n for n in unexpected if "." in n and (root := n.split(".", 1)[0]) in HEADS and root not in roots)
    extra = {name: str(list(shape)) for name, shape in unexpected.items() if name not in head}
    absent = {name: str(list(shape)) for name, shape in missing.items()}
    groups = {"missing": absent, "misshapen": misfits, "unexpected": extra}
    faults = [_listing(kind, tensors) for kind, tensors in groups.items() if tensors]
    if faults:
        raise InputError(
            "the weights do not fit the model",
            why="; ".join(faults),
            where=str(where),
            do="give the weights of this very architecture, or change the model with --model-arg "
            "(num_classes=0 leaves the classifier out, img_size=N sets the position embeddings)",
        )
    return [f"unused classifier head in {Path(where).name}: {', '.join(head)}"] if head else []


def resample_pos_embed(model: nn.Module, tensors: dict[str, Tensor]) -> list[str]:
    """Resample a timm `pos_embed` [1, prefix + h·w, dim] of a square grid to the model's own grid, in place.

    It leaves alone what it cannot resample: no such tensor, another width, no square grid. `copy_weights` then refuses.

    Returns:
        Notes, one or none.
    """
    mine, given = getattr(model, "pos_embed", None), tensors.get("pos_embed")
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if mine is None or given is None or grid is None or mine.shape == given.shape:
        return []
    prefix = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 1)
    if given.ndim != 3 or given.shape[::2] != mine.shape[::2] or given.shape[1] <= prefix:
        return []
    side = math.isqrt(given.shape[1] - prefix)
    if side * side != given.shape[1] - prefix or prefix + grid[0] * grid[1] != mine.shape[1]:
        return []
    from timm.layers import resample_abs_pos_embed

    tensors["pos_embed"] = resample_abs_pos_embed(given, new_size=list(grid), num_prefix_tokens=prefix)
    return [f"pos_embed resampled from {side}×{side} to {grid[0]}×{grid[1]} tokens"]


def _torch_load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:Unsupported (?:global|class)|Trying to load).*?GLOBAL (\S+)", str(error))
        if refused is None:  # torch's own words advise weights_only=False, which is no advice
            raise _broken(path, "torch cannot read it as a file of tensors") from error
        raise InputError(
            f"{path} holds more than tensors",
            why=f"it holds a {refused[1]}, and reading a Python object runs code from the file",
            do="save only the state dict: torch.save(model.state_dict(), …), or safetensors.torch.save_file",
        ) from error
    except Exception as error:  # the bytes are anyone's: the parser raises whatever it meets
        raise _broken(path, error) from error


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    tensors = {k: v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, Mapping) else {}
    if not tensors:
        held = f"a {type(loaded).__name__}" + (f" of {list(loaded)[:SHOWN]}" if isinstance(loaded, Mapping) else "")
        raise InputError(
            f"{path} holds no weights by name",
            why=f"it holds {held}",
            do=f"save a state dict, plain or under one of {', '.join(WRAPPERS)}",
        )
    return tensors


def _check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        values = tensor.float() if tensor.element_size() == 1 else tensor  # float8 has no isfinite
        finite = torch.isfinite(values)
        if not finite.all():
            raise InputError(
                f"the weight {name} holds NaN or Inf",
                why=f"of its {counted(tensor.numel(), 'value')}, {int((~finite).sum())} not finite",
                where=str(path),
                do="download or convert the file again; fp16 overflows where bf16 and fp32 do not",
            )


def _broken(path: Path, why: Exception | str) -> InputError:
    if isinstance(why, Exception):
        why = f"{type(why).__name__}: {next(iter(str(why).splitlines()), 'it is empty')[:200]}"
    truncated = is_truncated(path) or "unexpected EOF" in why  # torch's, of a file of the format before zip archives
    otherwise = TRUNCATED if truncated else "save the state dict again, with torch.save or safetensors.torch.save_file"
    return InputError(
        f"{path} is no whole weight file" if truncated else f"{path} is no weight file that can be read",
        why=why,
        do=repair(path, otherwise),
    )


def _listing(kind: str, tensors: Mapping[str, str]) -> str:
    names = sorted(tensors)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {kind}: " + ", ".join(f"{name} {tensors[name]}" for name in names[:SHOWN]) + more
