"""The one graph form of jetvit: a pre-dispatch ATen graph, whichever frontend it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch.fx import GraphModule, Node

from jetvit.patterns.tokens import Known


@dataclass
class CapturedGraph:
    """A pre-dispatch ATen graph and what its placeholders stand for.

    Args:
        module: the graph. Autocast and no_grad regions are submodules (export) or flat enter/exit nodes (Dynamo).
        tensor_names: the FQN of every placeholder or attribute that stands for a parameter, buffer or constant.
        ambient_autocast: device type → dtype of the autocast regions that were open when the graph was captured.
        known: what an earlier graph of the model has told of the axes of a placeholder.
    """

    module: GraphModule
    tensor_names: Mapping[Node, str]
    ambient_autocast: Mapping[str, torch.dtype] = field(default_factory=dict)
    known: Mapping[Node, Known] = field(default_factory=dict)
