"""The check that a model has the weights that a plan was made on.

A plan with weights of its own is wrong on other base weights, so it carries samples of them, and a difference is an
error. A plan without weights may still do well, so it carries a readable record, and a difference is a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jetvit.patterns.errors import PlanError
from jetvit.patterns.wording import counted

if TYPE_CHECKING:
    from jetvit.patterns.site import AttentionSite

SAMPLES = 64
RTOL = 1e-2  # A cast to bfloat16 moves a value by at most 2^-8 of it.
RMS_ATOL = 1e-3  # Of the tensor's root mean square: what a cast to float16 leaves of the smallest values.

_ABSENT = 0.1
_RECORDED = 8
_RECORD_RTOL = 2e-2


def projection_weights(sites: Iterable[AttentionSite], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that project to and from a model's attentions, by FQN: they tell one base from another."""
    names = [linear.weight for site in sites for linear in site.projections.named().values()]
    return {name: tensors[name] for name in names if name in tensors}


def sample_tensor(tensor: Tensor) -> Tensor:
    """At most 64 values of a tensor of any real dtype and shape, as fp32 [min(64, numel)] on the CPU.

    The positions depend on the number of values alone.
    """
    flat = tensor.detach().flatten()
    return flat[torch.tensor(_positions(flat.numel()), dtype=torch.long, device=flat.device)].float().cpu()


def sample_base(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`sample_tensor` of each tensor by FQN: the `base_samples` of a plan with weights."""
    return {fqn: sample_tensor(tensor) for fqn, tensor in tensors.items()}


def check_base(samples: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Check that `tensors` are those that were sampled; returns the names of a few that are not there to be compared.

    A value differs if it is off by more than 1e-2 of itself plus 1e-3 of the root mean square of the samples. Exporters
    fold a constant into another, such as position embeddings at one image size: a tenth of the names may be absent.

    Raises:
        PlanError: names the first tensor that differs, or the first that is absent where more than a tenth are.
    """
    do = "load the weights that the plan was made on, or make a new plan"
    absent = [fqn for fqn in samples if fqn not in tensors]
    if len(absent) > _ABSENT * len(samples):
        raise PlanError(
            "a base weight of the plan is not in the model",
            why=f"{len(absent)} of {len(samples)} are missing" if len(absent) > 1 else "",
            where=absent[0],
            do=do,
        )
    for fqn, expected in samples.items():
        if fqn in absent:
            continue
        found = sample_tensor(tensors[fqn])
        off, atol = _off(found, expected)
        if off is None:
            raise PlanError(
                "a base weight is not the one that the plan was made on",
                why=f"the plan has {counted(len(expected), 'sample')} of it; "
                f"the model's has {counted(tensors[fqn].numel(), 'value')}",
                where=fqn,
                do=do,
            )
        if off.any():
            at = int(off.nonzero()[0])
            raise PlanError(
                "a base weight is not the one that the plan was made on",
                why=f"sample {at} is {expected[at]:.6g} in the plan and {found[at]:.6g} in the model; "
                f"off by more than {RTOL:g} of the value "
                f"plus {atol:.3g}: {int(off.sum())} of {counted(len(expected), 'sample')}",
                where=fqn,
                do=do,
            )
    return absent


def _off(found: Tensor, expected: Tensor) -> tuple[Tensor | None, float]:
    """Return where two samples differ, None if their lengths do, and the tolerance besides `RTOL`."""
    finite = expected[expected.isfinite()]
    atol = RMS_ATOL * float(finite.square().mean().sqrt()) if len(finite) else 0.0
    if found.shape != expected.shape:
        return None, atol
    return ~torch.isclose(found, expected, rtol=RTOL, atol=atol, equal_nan=True), atol


def find_moved(
    samples: Mapping[str, Tensor], rename: Callable[[str], str], tensors: Mapping[str, Tensor]
) -> dict[str, str]:
    """Find weights that have other names in a model by their values, and with them the modules that hold them.

    A weight is looked for in the block where its name would be, and taken if it is the only one there with its values.

    Args:
        samples: samples of a plan's base weights, by the plan's FQN.
        rename: gives the model's FQN for one of the plan, so far as it is known.
        tensors: the model's weights.
    Returns:
        The plan's name → the model's, of a module where the last segments agree ("weight", "bias"), else of the weight.
    """
    moved: dict[str, str] = {}
    for fqn, expected in samples.items():
        name = rename(fqn)
        if name in tensors:
            continue
        alike = [
            other
            for other, tensor in tensors.items()
            if _block(other) == _block(name)
            and (off := _off(sample_tensor(tensor), expected)[0]) is not None
            and not off.any()
        ]
        if len(alike) == 1:
            (module, _, leaf), (other_module, _, other_leaf) = fqn.rpartition("."), alike[0].rpartition(".")
            moved |= {module: other_module} if leaf == other_leaf else {fqn: alike[0]}
    return moved


def _block(fqn: str) -> str:
    """The name of a parameter as far as its last layer index."""
    parts = fqn.split(".")
    last = max((index for index, part in enumerate(parts) if part.isdigit()), default=-1)
    return ".".join(parts[: last + 1])


def base_record(tensors: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Mean of absolute values and standard deviation of up to 8 of the tensors, spread evenly over them, by FQN.

    This is the `base` of a plan without weights; four significant digits each.
    """
    names = list(tensors)
    count = min(_RECORDED, len(names))
    return {name: _statistics(tensors[name]) for name in (names[i * len(names) // count] for i in range(count))}


def base_warning(record: Mapping[str, tuple[float, float]], tensors: Mapping[str, Tensor]) -> str | None:
    """The warning that `tensors` are not the weights of `record`, or None if they seem to be.

    A weight that has another name now may be any of its block that looks like it.
    """
    for fqn, expected in record.items():
        if fqn not in tensors:
            block = [tensor for name, tensor in tensors.items() if _block(name) == _block(fqn)]
            if any(_like_record(_statistics(tensor), expected) for tensor in block):
                continue
            return f"the plan was made on other weights: {fqn} is not in this model. Measure it again: jetvit check"
        found = _statistics(tensors[fqn])
        if not _like_record(found, expected):
            return (
                f"the plan was made on other weights: {fqn} has mean |w| {found[0]:g} and std {found[1]:g} here, "
                f"{expected[0]:g} and {expected[1]:g} there. Measure it again: jetvit check"
            )
    return None


def _like_record(found: tuple[float, float], expected: tuple[float, float]) -> bool:
    return torch.allclose(torch.tensor(found), torch.tensor(expected), rtol=_RECORD_RTOL, atol=0, equal_nan=True)


def _positions(numel: int) -> list[int]:
    if numel <= SAMPLES:
        return list(range(numel))
    # One in each of 64 parts, moved within it by the golden ratio (40503 / 2^16), so that the samples of a matrix do
    # not all fall into one column. Integers: the same on every machine.
    ends = [i * numel // SAMPLES for i in range(SAMPLES + 1)]
    return [ends[i] + ((i * 40503 % 65536) * (ends[i + 1] - ends[i]) >> 16) for i in range(SAMPLES)]


def _statistics(tensor: Tensor) -> tuple[float, float]:
    values = tensor.detach().float()
    mean, std = values.abs().mean(), values.std(correction=0)
    return float(f"{float(mean):.4g}"), float(f"{float(std):.4g}")
