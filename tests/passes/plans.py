"""Plans that try every way to call an operator, kernels of convolutions included."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

import jetvit
from jetvit.cost_model import Choice, Plan
from jetvit.passes.frontends.capture import export_model
from jetvit.patterns import AttentionSite
from tests.passes.models import Inputs, plan_of
from tests.zoo import CASES

HIDDEN = 5
MIXED = (Choice("window", window=(3, 4)), Choice("linear", conv_size=3), Choice("full"), Choice("linear"))


def with_kernels(sites: Sequence[AttentionSite], choices: Sequence[Choice] = MIXED, static: bool = False) -> Plan:
    """A plan that gives the sites the choices in turn, with random weights for their convolutions.

    Every other kernel is made from the image, or none with `static`.
    """
    weights: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for index, (site, choice) in enumerate(zip(sites, itertools.cycle(choices), strict=False)):
        if not choice.conv_size:
            continue
        channels = site.num_heads * site.head_dim
        outputs = channels * choice.conv_size**2
        shapes = {"b2": (outputs,)}
        if not static and index % 2:
            shapes |= {"w1": (HIDDEN, channels), "b1": (HIDDEN,), "w2": (outputs, HIDDEN)}
        for part, shape in shapes.items():
            weights[f"{site.name}.linear_attention.{part}"] = torch.randn(shape, generator=generator) * 0.3
    return plan_of(sites, choices, weights=weights)


def rewritten(
    name: str, choices: Sequence[Choice] = MIXED, dynamic: bool = False, static: bool = False
) -> tuple[torch.export.ExportedProgram, Inputs]:
    """A model of the zoo, rewritten by a plan, and its inputs."""
    case = CASES[name]
    inputs = case.inputs()
    shapes = case.dynamic_shapes(*inputs) if dynamic else None
    program = export_model(case.build(), *inputs, shapes)
    plan = with_kernels(jetvit.find_attention(program), choices, static)
    return jetvit.optimize(program, plan=plan), inputs
