"""A model that was rewritten by a plan, all of whose weights can be trained."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from jetvit.cost_model import Plan, projection_weights, sample_base
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.passes.pipeline import RewriteOptions, rewrite
from jetvit.search.post_training.paths import path_key
from jetvit.search.post_training.shards import whole
from jetvit.torch_private import set_state


class Student:
    """A model as a plan leaves it. Its weights are copies.

    Args:
        program: the original model; nothing is changed.
        plan: what is done to it; its weights are where training begins.
    Raises:
        PlanError: the plan does not fit the model.
    """

    def __init__(self, program: ExportedProgram, plan: Plan):
        self._plan = plan
        self._base = {name: value.detach() for name, value in program.state_dict.items()}
        graph = ExportedGraph(program)
        self._projections = projection_weights(graph.sites(), self._base)
        rewrite(graph, plan, RewriteOptions(exact=False))
        self._rewritten = graph.program()
        self.model: GraphModule = self._rewritten.module(check_guards=False)
        _make_trainable(self.model)

    @property
    def choices(self) -> str:
        """The choice of the plan for each attention, as text."""
        return path_key({site.name: site.choice for site in self._plan.sites})

    @property
    def inherited(self) -> frozenset[str]:
        """The names of the weights that the original model has too."""
        return frozenset(self._base)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All weights by their names in the model, those that the plan brought too."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def program(self) -> ExportedProgram:
        """The model with its weights as they are now."""
        program = copy.copy(self._rewritten)
        own = dict(self.model.named_parameters(remove_duplicate=False))
        state = {
            name: nn.Parameter(whole(own[name]).clone(), requires_grad=False) if name in own else value
            for name, value in program.state_dict.items()
        }
        set_state(program, state)
        return program

    def plan(self) -> Plan:
        """The plan with the weights as they are now: those that differ from the original model's."""
        weights: dict[str, Tensor] = {}
        for name, value in self.model.named_parameters(remove_duplicate=False):
            now = whole(value)
            if name not in self._base or not torch.equal(now, self._base[name]):
                weights[name] = now.clone()
        samples = sample_base(self._projections) if weights else {}
        return replace(self._plan, weights=weights, base_samples=samples, base={})


def _make_trainable(model: GraphModule) -> None:
    """Give all floating-point parameters storage of their own, in place; what was shared stays so."""
    copies: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if value not in copies:
                copies[value] = nn.Parameter(value.detach().clone(), requires_grad=value.is_floating_point())
            setattr(module, name, copies[value])
