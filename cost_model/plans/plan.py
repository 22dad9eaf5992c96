"""`Plan`: which attention each site becomes, why, and what was measured. The only currency of search and compile."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jetvit.cost_model.plans import plan_file
from jetvit.cost_model.plans.base_weights import base_warning, check_base, find_moved
from jetvit.cost_model.plans.choice import Choice
from jetvit.cost_model.plans.entries import FrontPoint, SitePlan
from jetvit.cost_model.plans.fingerprint import Fingerprint, SiteShape, later_calls, refuse_repeats
from jetvit.cost_model.plans.names import NameMatch, match_names, several_parts
from jetvit.cost_model.plans.renaming import renamed_matches
from jetvit.patterns.errors import MEND_THE_BREAK, PlanError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jetvit.patterns.site import AttentionSite

_SAMPLES_PREFIX = "base_samples/"


@dataclass(frozen=True, eq=False)
class Plan:
    """The choice at each attention site of a model, with the weights that go with it and where it all comes from.

    * `sites`: one entry a site, each in `fingerprint`. A site with no entry keeps full attention.
    * `fingerprint`: the sites of the model that the plan was made on.
    * `provenance`: free-form record by name: text, numbers, lists, and records of these.
    * `size`: image height and width in pixels that the plan was made for.
    * `weights`: new and changed weights by FQN, of any dtype and device; empty for a training-free plan.
    * `base_samples`: `sample_base` of the base weights; only beside `weights`.
    * `base`: `base_record` of the base weights, for a plan without weights.
    * `front`: plans measured on the way.

    Raises `PlanError` for a site that is named twice or not in the fingerprint, and for values JSON cannot hold.
    """

    sites: tuple[SitePlan, ...]
    fingerprint: Fingerprint
    provenance: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    weights: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    base_samples: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    base: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    front: tuple[FrontPoint, ...] = ()

    def __post_init__(self) -> None:
        normal = {
            "sites": tuple(self.sites),
            "provenance": _json_copy(self.provenance),
            "size": None if self.size is None else (int(self.size[0]), int(self.size[1])),
            "weights": dict(self.weights),
            "base_samples": dict(self.base_samples),
            "base": {fqn: (float(mean), float(std)) for fqn, (mean, std) in self.base.items()},
            "front": tuple(self.front),
        }
        for name, value in normal.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        refuse_repeats("plan", (site.name for site in self.sites))
        known = set(self.fingerprint.names)
        for site in self.sites:
            if site.name not in known:
                raise PlanError(
                    "a site of the plan is not in its fingerprint",
                    where=f"site {site.name}",
                    do="take the fingerprint and the sites from one model",
                )
        for fqn in self.weights:
            if fqn.startswith(_SAMPLES_PREFIX):
                raise PlanError(
                    "a weight has a reserved name", where=fqn, do=f"name it without {_SAMPLES_PREFIX} in front"
                )
        if self.base_samples and not self.weights:
            raise PlanError(
                "the plan has samples of base weights and no weights",
                where=next(iter(self.base_samples)),
                do="give base_record as `base` instead",
            )
        for fqn, sample in self.base_samples.items():
            if sample.dtype != torch.float32 or sample.ndim != 1:
                raise PlanError(
                    "a sample of a base weight is not a row of fp32 values",
                    why=f"it is {sample.dtype} of shape {list(sample.shape)}",
                    where=_SAMPLES_PREFIX + fqn,
                    do="make the samples with sample_base",
                )

    def __eq__(self, other: object) -> bool:
        """Equal in every field; tensors bit by bit, wherever they are. A plan has no hash: `digest` is the key."""
        if not isinstance(other, Plan):
            return NotImplemented
        return (
            self._to_json() == other._to_json()
            and _same_tensors(self.weights, other.weights)
            and _same_tensors(self.base_samples, other.base_samples)
        )

    def choice_for(self, name: str) -> Choice:
        """The choice at the plan's site `name`: full attention where the plan says nothing."""
        return next((site.choice for site in self.sites if site.name == name), Choice("full"))

    def digest(self) -> str:
        """sha256, in hex, of what the plan does: the choices that are not full, and the weights.

        The reason, the measurements and the provenance of a choice play no part, nor does the order of sites or
        weights.
        """
        changed = {site.name: site.choice.to_json() for site in self.sites if site.choice.kind != "full"}
        weights = sorted(self.weights.items())
        described = [[fqn, str(tensor.dtype), list(tensor.shape)] for fqn, tensor in weights]
        digest = hashlib.sha256(json.dumps([changed, described], sort_keys=True).encode())
        for _, tensor in weights:
            digest.update(_bytes(tensor).numpy().data)
        return digest.hexdigest()

    def match(
        self,
        sites: Iterable[AttentionSite],
        *,
        partial: bool = False,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> NameMatch:
        """Find the plan's sites among those of a model, and check that they look as the plan expects.

        Where names are other than a prefix explains, as they are in another release of a library, a renaming is taken
        if it is the only one with which all sites look as expected (`renamed_matches`).

        Args:
            sites: the model's.
            partial: as in `match_names`. A renaming is taken only if `tensors` have the values of the base weights.
            tensors: the model's weights, by FQN. Those that have other names now are found by their values.
        Raises:
            PlanError: as `match_names`; or it names the first difference between the fingerprints.
        """
        whole = Fingerprint.of(sites)
        calls = later_calls(self.fingerprint, whole)
        model = Fingerprint(tuple(site for site in whole.sites if site.name not in calls))
        try:
            match = match_names((site.name for site in self.sites), model.names, partial=partial)
        except PlanError:
            renamed = self._renamed(model, tensors if partial else None)
            if renamed is None:
                raise
            match = renamed
        if partial and not match.mapping:
            match = self._renamed(model, tensors or {}) or match
        if match.absent:
            self._refuse_scattered(match)
        if tensors and match.mapping:
            match = self._with_moved(match, tensors)
        difference = None if partial and not match.mapping else self._difference(match, model, partial)
        if difference is not None:
            raise PlanError(
                "the plan is for another model",
                why=difference,
                do="apply the plan to the model that it was made on, or make a new one with jetvit.calibrate",
            )
        return replace(match, calls=calls)

    def _difference(self, match: NameMatch, model: Fingerprint, partial: bool = False) -> str | None:
        """The first difference between the plan's fingerprint and that of the part of a model that it names."""
        own = match.here({site.name: site for site in self.fingerprint.sites})
        ours = Fingerprint(tuple(replace(site, name=name) for name, site in own.items()))
        theirs = model.within(match.added, match.added)
        return (ours.only(theirs.names) if partial else ours).difference(theirs)

    def _renamed(self, model: Fingerprint, tensors: Mapping[str, Tensor] | None) -> NameMatch | None:
        """The one renaming of all sites with which they look as expected, and `tensors`, if given, as the base weights.

        Raises:
            PlanError: there are several.
        """
        matches = renamed_matches(self.fingerprint.names, model.names)
        fitting = [match for match in matches if self._difference(match, model) is None]
        if tensors is not None:
            fitting = [match for match in fitting if self._has_base(match, tensors)]
        if len(fitting) > 1:
            first = self.fingerprint.names[0]
            raise several_parts(first, f"it could be any of {', '.join(match.mapping[first] for match in fitting)}")
        return fitting[0] if fitting else None

    def _with_moved(self, match: NameMatch, tensors: Mapping[str, Tensor]) -> NameMatch:
        """A match that knows the new names of the base weights, found by their values."""
        return replace(match, moved=find_moved(match.own(self.base_samples), match.rename, tensors))

    def _has_base(self, match: NameMatch, tensors: Mapping[str, Tensor]) -> bool:
        """Whether a model's weights are known to be those that the plan was made on."""
        if self.base_samples:
            try:
                return not check_base(self._with_moved(match, tensors).here(self.base_samples), tensors)
            except PlanError:
                return False
        return bool(self.base) and base_warning(match.here(self.base), tensors) is None

    def _refuse_scattered(self, match: NameMatch) -> None:
        """Refuse a part of the model with some calls of a module whose calls the plan treats differently.

        Which call it is that is here is not known: the first call in every graph has the name of the first of all.
        """
        choices: dict[str, set[Choice]] = {}
        for site in self.sites:
            choices.setdefault(site.name.partition("#")[0], set()).add(site.choice)
        for name in match.absent:
            module = name.partition("#")[0]
            here = any(each.partition("#")[0] == module for each in match.mapping)
            if here and len(choices[module]) > 1:
                raise PlanError(
                    f"the calls of {module} are spread over several graphs",
                    why="the plan makes different choices for them, and which of them is in this graph is not known",
                    where=f"site {name} of the plan",
                    do=MEND_THE_BREAK,
                )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the plan into `folder`: plan.json and, if it has weights, weights.safetensors.

        An old plan there is replaced: a crash at any moment leaves the old or the new. Raises `PlanError` if the plan
        is not valid or the folder cannot be written.
        """
        samples = {_SAMPLES_PREFIX + fqn: sample for fqn, sample in self.base_samples.items()}
        plan_file.write(folder, self._to_json(), {**self.weights, **samples})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan from its folder or its plan.json; tensors are on the CPU.

        Raises `PlanError` with the file, the place in it and what to do, whatever is wrong with the files.
        """
        file, document, tensors = plan_file.read(path)
        samples = {name: tensor for name, tensor in tensors.items() if name.startswith(_SAMPLES_PREFIX)}
        with plan_file.unchecked(str(file)), _errors_in(str(file)):
            return cls(
                sites=tuple(SitePlan.from_json(site) for site in document["sites"]),
                fingerprint=Fingerprint(tuple(SiteShape.from_json(s) for s in document["fingerprint"]["sites"])),
                provenance=document["provenance"],
                size=document["size"],
                weights={name: tensor for name, tensor in tensors.items() if name not in samples},
                base_samples={name.removeprefix(_SAMPLES_PREFIX): sample for name, sample in samples.items()},
                base=document["base"],
                front=tuple(FrontPoint.from_json(point) for point in document["front"]),
            )

    def _to_json(self) -> dict[str, Any]:
        return {
            "schema_version": plan_file.SCHEMA_VERSION,
            "size": None if self.size is None else list(self.size),
            "provenance": dict(sorted(self.provenance.items())),
            "sites": [site.to_json() for site in self.sites],
            "front": [point.to_json() for point in self.front],
            "fingerprint": {"sites": [site.to_json() for site in self.fingerprint.sites]},
            "base": {fqn: list(statistics) for fqn, statistics in sorted(self.base.items())},
        }


@contextmanager
def _errors_in(file: str) -> Iterator[None]:
    """Put the file in front of where a `PlanError` says that it is."""
    try:
        yield
    except PlanError as error:
        where = f"{file}, {error.where}" if error.where else file
        raise PlanError(error.what, why=error.why, where=where, do=error.do) from None


def _json_copy(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance as saving and loading leaves it, so that a plan equals itself after both."""
    try:
        return json.loads(json.dumps(dict(provenance), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise PlanError(
            "the provenance of a plan is not JSON",
            why=str(error),
            where="$.provenance",
            do="give finite numbers, text, true, false, None, and lists and records of these",
        ) from error


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _same_tensors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        tensor.dtype == theirs[fqn].dtype
        and tensor.shape == theirs[fqn].shape
        and torch.equal(_bytes(tensor), _bytes(theirs[fqn]))
        for fqn, tensor in ours.items()
    )
