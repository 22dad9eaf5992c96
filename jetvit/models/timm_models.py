"""Models of timm by their names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jetvit.models.loaded import LoadedModel, both_sides, import_package, reason, seeded, square_side
from jetvit.models.weights import copy_weights, read_weights, resample_pos_embed, strip_prefixes
from jetvit.patterns.errors import InputError


def load_timm(
    spec: str, name: str, weights: str | Path | None, args: dict[str, Any], dtype: torch.dtype | None
) -> LoadedModel:
    """Build the timm model `name`; `spec` is what the user wrote, the rest as for `load_model`."""
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
