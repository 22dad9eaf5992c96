"""Requests of the command line as typed values: `run` of a command makes them from its arguments."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from jetvit.commands.options import DTYPES
from jetvit.models.load import parse_model_args


@dataclass(frozen=True)
class ModelRequest:
    """The model, how it is built, and the images that it is called with; None for what the model says itself.

    * spec: MODEL as the user wrote it.
    * weights: a file of weights. model_args: the values of --model-arg.
    * size: (height, width) of the images, in pixels. batch: how many of them.
    * dynamic: leave batch, height and width open.
    """

    spec: str
    weights: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    device: str = "cpu"
    size: tuple[int, int] | None = None
    batch: int | None = None
    dynamic: bool = False

    @classmethod
    def of(cls, args: argparse.Namespace) -> ModelRequest:
        """Read the arguments of `add_model_options`.

        Raises:
            InputError: a --model-arg cannot be read.
        """
        return cls(
            spec=args.model,
            weights=args.weights,
            model_args=parse_model_args(args.model_arg),
            dtype=DTYPES[args.dtype] if args.dtype else None,
            device=args.device,
            size=args.size,
            batch=args.batch,
            dynamic=getattr(args, "dynamic", False),
        )


@dataclass(frozen=True)
class Normalisation:
    """The mean and standard deviation of each channel on the scale 0–1; None for the model's own."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Normalisation:
        """Read the arguments of `add_normalisation_options`."""
        return cls(args.mean, args.std)
