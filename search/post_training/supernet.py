"""The supernet: a captured model in which every attention site holds all of its choices, each with its own weights.

What is trained is what is emitted: each choice is the very graph that a plan puts there, and the path that takes full
attention at every site is the original model to the bit (after `Normalize`, which takes out copies that do nothing).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from jetvit.cost_model import FULL, Choice, Fingerprint, Plan, SitePlan, projection_weights, sample_base
from jetvit.cost_model.measuring.timing import generator_shapes
from jetvit.passes.graph.regions import drop_dead_code
from jetvit.passes.graph.rewritable import ExportedGraph
from jetvit.passes.pipeline import RewriteOptions, rewrite_program
from jetvit.passes.rewrites.apply_plan import generator_names
from jetvit.passes.rewrites.plan_checks import covers
from jetvit.patterns.errors import JetvitError
from jetvit.patterns.find import find_sites
from jetvit.patterns.site import AttentionSite
from jetvit.search.calibration.fixed_grids import refuse_open_grids
from jetvit.search.data.processes import Processes
from jetvit.search.post_training.branch import Branch, CannotCut, Cut, cut_out, frozen
from jetvit.search.post_training.shards import shard, whole

log = logging.getLogger(__name__)

Path = Mapping[str, Choice]
"""The choice at each site by its name; sites that are not named are full attention."""


class ChoiceSite(nn.Module):
    """One attention site with all of its choices.

    The values that any choice takes from the model come in, in the order of `inputs`; what the `active` choice makes
    of them goes out. Parameters: `branches.<number>.<name in the model>`, in the order of `choices`.
    """

    def __init__(self, name: str, branches: Mapping[Choice, Branch]):
        super().__init__()
        self.name = name
        self.choices = tuple(branches)
        self.inputs = tuple(dict.fromkeys(each for branch in branches.values() for each in branch.inputs))
        self.branches = nn.ModuleList(branch.module for branch in branches.values())
        self._places = [tuple(map(self.inputs.index, branch.inputs)) for branch in branches.values()]
        self._copies = False
        self.active = FULL
        self.watch: list[tuple[tuple[object, ...], Tensor]] | None = None

    def forward(self, *values: object) -> Tensor:
        """The output of the active choice. Where `watch` is a list, it gets the values and the output."""
        output = self.run(self.active, values)
        if self.watch is not None:  # copies: what follows in the model may write into either
            self.watch.append((tuple(map(_copy, values)), output.clone()))
        return output

    def run(self, choice: Choice, values: Sequence[object]) -> Tensor:
        """The output of one choice for the values that came in."""
        number = self.choices.index(choice)
        output = self.branches[number](*(values[place] for place in self._places[number]))
        # Shards are put together for the backward pass of this very tensor, and the model may write into what it gets.
        return output.clone() if self._copies else output

    def shard(self, processes: Processes) -> None:
        """Divide the weights of all choices but full attention, which is not trained, among processes."""
        for choice, branch in zip(self.choices, self.branches, strict=True):
            if choice != FULL:
                shard(branch, processes)
        self._copies = True

    def parameters_of(self, choice: Choice) -> dict[str, nn.Parameter]:
        """The parameters of a choice by their names in the model; those of its own, such as a generator's, too."""
        return dict(self.branches[self.choices.index(choice)].named_parameters())


class Supernet(nn.Module):
    """A model with every choice at every site.

    Full attention and all that is not attention keep the model's weights, which are never trained; each other choice
    begins with copies of the site's own projections (and of whatever else of the site has weights).

    Args:
        program: an exported program of fixed grid, in eval mode.
        choices: what a site may become besides full attention. Linear attention with a convolution begins with a
            kernel generator that yields zeros.
        seed: of the new weights.
        dynamic: whether the kernel of a convolution depends on the image; else it is a weight.
        inherit: whether choices begin with the weights of the site's projections; else these are reinitialised, to see
            what inheriting them is worth.
    Raises:
        JetvitError: no site can be trained.
        InputError: the token grid is not fixed.
    """

    def __init__(
        self,
        program: ExportedProgram,
        choices: Sequence[Choice],
        *,
        seed: int = 0,
        dynamic: bool = True,
        inherit: bool = True,
    ):
        super().__init__()
        self.program = rewrite_program(program, options=RewriteOptions(exact=False))
        self.sites = find_sites(ExportedGraph(self.program))
        self.fingerprint = Fingerprint.of(self.sites)
        self.kept_full: dict[str, str] = {}
        self._base = {name: value.detach() for name, value in self.program.state_dict.items()}
        self.model, owners = self._build(
            list(dict.fromkeys(choices)), torch.Generator().manual_seed(seed), dynamic, inherit
        )
        self.choice_sites: dict[str, ChoiceSite] = owners

    @property
    def always_full(self) -> list[str]:
        """The names of the sites that have no other choice than full attention."""
        return [site.name for site in self.sites if site.name not in self.choice_sites]

    def train(self, mode: bool = True) -> Supernet:
        """Do nothing: the graph was captured in eval mode, and stays so."""
        return self

    def forward(self, *args: object, **kwargs: object) -> object:
        """Run the model on the active path."""
        return self.model(*args, **kwargs)

    def original(self, *args: object, **kwargs: object) -> object:
        """Run the model with full attention everywhere, whatever the active path."""
        with self.path({}):
            return self.model(*args, **kwargs)

    @contextmanager
    def path(self, path: Path) -> Iterator[None]:
        """Take this path meanwhile. Raises ValueError for a site or a choice that is not there."""
        for name, choice in path.items():
            self.check(name, choice)
        before = {name: site.active for name, site in self.choice_sites.items()}
        for name, site in self.choice_sites.items():
            site.active = path.get(name, FULL)
        try:
            yield
        finally:
            for name, site in self.choice_sites.items():
                site.active = before[name]

    def check(self, name: str, choice: Choice) -> None:
        """Raise ValueError for a site that is not there, or that cannot be this choice."""
        if name not in self.fingerprint.names:
            raise ValueError(f"there is no site {name}: {', '.join(self.fingerprint.names)}")
        known = self.choice_sites[name].choices if name in self.choice_sites else (FULL,)
        if choice not in known:
            raise ValueError(f"{name} cannot be {choice.label}: {', '.join(each.label for each in known)}")

    @contextmanager
    def watching(self) -> Iterator[dict[str, list[tuple[tuple[object, ...], Tensor]]]]:
        """Yield a dict that gets, by site, what comes into each and what goes out, call by call."""
        seen: dict[str, list[tuple[tuple[object, ...], Tensor]]] = {name: [] for name in self.choice_sites}
        for name, site in self.choice_sites.items():
            site.watch = seen[name]
        try:
            yield seen
        finally:
            for site in self.choice_sites.values():
                site.watch = None

    def plan(self, path: Path, *, why: str = "", **fields: object) -> Plan:
        """The plan of a path: its choices, and all weights that differ from the model's. fields: others of `Plan`."""
        weights: dict[str, Tensor] = {}
        for name, choice in path.items():
            self.check(name, choice)
            if choice != FULL:
                for fqn, parameter in self.choice_sites[name].parameters_of(choice).items():
                    value = whole(parameter)
                    if fqn not in self._base or not torch.equal(value, self._base[fqn]):
                        weights[fqn] = value.clone()
        samples = sample_base(projection_weights(self.sites, self._base)) if weights else {}
        entries = tuple(SitePlan(site.name, path.get(site.name, FULL), why) for site in self.sites)
        return Plan(entries, self.fingerprint, weights=weights, base_samples=samples, **fields)  # type: ignore[arg-type]

    def _build(
        self, choices: Sequence[Choice], generator: torch.Generator, dynamic: bool, inherit: bool
    ) -> tuple[GraphModule, dict[str, ChoiceSite]]:
        model = _as_module(self.program)
        outside = {node.name: node for node in model.graph.nodes}
        cuts = self._cuts()
        branches: dict[str, dict[Choice, Branch]] = {name: {} for name in cuts}
        for choice in (FULL, *choices):
            sites = [site for site in self.sites if site.name in cuts and (choice == FULL or not covers(site, choice))]
            graph = _as_module(self._rewritten(sites, choice, generator, dynamic))
            for site in sites:
                try:
                    branch = cut_out(cuts[site.name], graph, outside, trained=choice != FULL)
                    if not inherit and choice != FULL:
                        _reinitialise(branch, site, generator)
                    branches[site.name][choice] = branch
                except CannotCut as error:
                    self.kept_full[site.name] = str(error)
        owners = {
            name: ChoiceSite(name, some)
            for name, some in branches.items()
            if name not in self.kept_full and len(some) > 1
        }
        for name, reason in self.kept_full.items():
            log.warning("%s keeps full attention: %s", name, reason)
        if not owners:
            reasons = [*self.kept_full.values(), *map(str, self.sites.rejected)]
            if cuts and not self.kept_full:
                reasons = ["every window holds the whole grid, and is full attention"]
            raise JetvitError(
                "no attention of the model can be searched", why="; ".join(reasons[:3]), do="see jetvit.explain"
            )
        frozen(model)
        for number, (name, owner) in enumerate(owners.items()):
            _put_in(model, f"choice_site_{number}", owner, outside[cuts[name].end], outside)
        drop_dead_code(model.graph)
        model.recompile()
        return model, owners

    def _cuts(self) -> dict[str, Cut]:
        refuse_open_grids(self.sites, "the search")
        cuts = {}
        for site in self.sites:
            try:
                cuts[site.name] = Cut.of(site)
            except CannotCut as error:
                self.kept_full[site.name] = str(error)
        return cuts

    def _rewritten(
        self, sites: Sequence[AttentionSite], choice: Choice, generator: torch.Generator, dynamic: bool
    ) -> ExportedProgram:
        if choice == FULL:
            return self.program
        weights: dict[str, Tensor] = {}
        for site in sites:
            if choice.conv_size:
                weights |= _new_generator(site, choice.conv_size, generator, dynamic)
        plan = Plan(tuple(SitePlan(site.name, choice) for site in sites), self.fingerprint, weights=weights)
        return rewrite_program(self.program, plan, RewriteOptions(exact=False, check=False))


def _copy(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else value


def _as_module(program: ExportedProgram) -> GraphModule:
    """A program as a module whose tensors are attributes; it takes what the original model took."""
    return program.module(check_guards=False)


def _new_generator(site: AttentionSite, conv_size: int, generator: torch.Generator, dynamic: bool) -> dict[str, Tensor]:
    """The weights of a kernel generator that yields zeros: the site begins as it would without a convolution."""
    w1, b1, w2, b2 = generator_shapes(site.num_heads * site.head_dim, conv_size)
    parts = [torch.randn(w1, generator=generator) * w1[1] ** -0.5, torch.zeros(b1), torch.zeros(w2), torch.zeros(b2)]
    named = dict(zip(generator_names(site.name), parts, strict=True))
    return named if dynamic else {name: named[name] for name in generator_names(site.name)[-1:]}


def _reinitialise(branch: Branch, site: AttentionSite, generator: torch.Generator) -> None:
    """Give the projections of a branch random weights and no bias."""
    own = dict(branch.module.named_parameters())
    for linear in site.projections.named().values():
        if linear.weight in own:
            nn.init.xavier_uniform_(own[linear.weight], generator=generator)
        if linear.bias in own:
            nn.init.zeros_(own[linear.bias])


def _put_in(model: GraphModule, target: str, owner: ChoiceSite, end: Node, outside: dict[str, Node]) -> None:
    """Put a site's module in the place of the nodes that computed its output, and of `end` in `outside`."""
    model.add_submodule(target, owner)
    with model.graph.inserting_before(end):
        call = model.graph.call_module(target, tuple(outside[name] for name in owner.inputs))
    call.meta = dict(end.meta)
    end.replace_all_uses_with(call)
    outside[end.name] = call  # a site may take what another yields
