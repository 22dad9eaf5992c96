"""What is prepared is converted, all of it; and what is not is named, with the reason."""

from __future__ import annotations

import copy
import json
import operator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.targets.converters import FILE, name_of, op_of, release
from benchmarks.targets.coverage import decomposition_table, uncovered
from benchmarks.targets.validators import VALIDATORS
from jetvit.cost_model import Choice
from jetvit.passes.targets.tensorrt import prepare
from jetvit.patterns.errors import InputError
from tests.passes.plans import MIXED, rewritten
from tests.zoo import CASES, found
from tests.zoo.quick import sweep

aten = torch.ops.aten
SITES = [case.name for case in found()]
QUICK = ["hf_dinov3_sdpa", "hf_depth_anything_sdpa", "hf_siglip_sdpa", "timm_vit_fused"]
# Positions are resampled with antialiasing, which is folded where the size is fixed.
OPEN = {"timm_vit_fused": ["aten._upsample_bicubic2d_aa.default"]}
PLANS = {
    "mixed": MIXED,
    "maps": (Choice("linear", feature_map="hedgehog"), Choice("linear", conv_size=5, feature_map="relu_centred")),
    "windows": (Choice("window", window=(3, 4)), Choice("window", window=(2, 2))),
}


@pytest.mark.parametrize("name", sweep(SITES, quick=["hf_dinov3_sdpa", "timm_vit_fused"]))
def test_every_operator_of_the_zoo_is_converted(name: str) -> None:
    program, _ = rewritten(name)
    assert uncovered(prepare(program)) == []


@pytest.mark.parametrize(
    ("static", "plan"), sweep(product([False, True], ["maps", "windows"]), quick=[(True, "maps"), (False, "windows")])
)
def test_every_kind_of_plan_is_converted(plan: str, static: bool) -> None:
    program, _ = rewritten("hf_dinov3_sdpa", PLANS[plan], static=static)
    assert uncovered(prepare(program)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_open_sizes(name: str) -> None:
    program, _ = rewritten(name, (Choice("window", window=(3, 4)), Choice("linear", conv_size=3)), dynamic=True)
    assert [each.op for each in uncovered(prepare(program))] == OPEN.get(name, [])


def test_plugins_are_converted() -> None:
    program, _ = rewritten("hf_dinov3_sdpa")
    assert uncovered(prepare(program, plugins=True)) == []


def test_an_unprepared_program_is_not() -> None:
    """The proof is not empty: the operators of jetvit have no converter."""
    program, _ = rewritten("timm_vit_fused", (Choice("window", window=(2, 3)), Choice("linear")))
    names = {each.op: each.why for each in uncovered(program)}
    assert names == {
        "jetvit.window_attention.default": "there is no converter",
        "jetvit.linear_attention.default": "there is no converter",
    }


@pytest.mark.parametrize(
    ("op", "why"),
    [
        ("aten.scaled_dot_product_attention.default", "scaled_dot_product_attention_decomposition of Torch-TensorRT "
         "takes it apart, unknown here"),
        pytest.param("aten.convolution.default", "there is no converter", marks=pytest.mark.slow),
        pytest.param("aten.linear.default", "there is no converter", marks=pytest.mark.slow),
        ("aten.cat.default", "there is no converter"),
    ],
)  # fmt: skip
def test_each_converter_counts(op: str, why: str) -> None:
    """Without it the program is not covered: the converters that are counted on are those that are there."""
    program, _ = rewritten("timm_vit_fused", static=True, choices=(MIXED[0], Choice("linear", conv_size=3)))
    without = replace(release(), converters={name: each for name, each in release().converters.items() if name != op})
    assert {(each.op, each.why) for each in uncovered(prepare(program), without)} == {(op, why)}


# --- conditions -------------------------------------------------------------------------------------------------------


class Calls(nn.Module):
    def __init__(self, function: Any):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def why_not(function: Any, x: Tensor, dynamic_shapes: Any = None) -> list[tuple[str, str]]:
    program = torch.export.export(Calls(function), (x,), dynamic_shapes=dynamic_shapes)
    return [(each.op, each.why) for each in uncovered(program)]


def attend(x: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(x, x[:, :1], x[:, :1])


@pytest.mark.parametrize(
    ("function", "op", "why"),
    [
        (attend, "aten.scaled_dot_product_attention.default", r"q is \[2, 4, 6, 8\] and k is \[2, 1, 6, 8\]"),
        (lambda x: x.double(), "aten._to_copy.default", "casts to torch.float64"),
        (lambda x: x[:, 0].max(dim=1), "aten.max.dim", "more of its results are read"),
        (lambda x: torch.special.i0(x), "aten.i0.default", "there is no converter"),
        (lambda x: (x > 0).int() & 3, "aten.bitwise_and.Scalar", "an operand is not boolean"),
        (lambda x: torch.fft.fft2(x).abs(), "aten._fft_c2c.default", "its values are complex"),
        (lambda x: x.sort()[0], "aten.sort.default", "a condition that is not known here: sort_validator"),
        (lambda x: x.repeat(1, 1, 700, 1).flatten().topk(4000)[0], "aten.topk.default", "4000, more than 3840"),
        (lambda x: torch.nn.functional.avg_pool2d(x, 2, ceil_mode=True), "aten.avg_pool2d.default", "rounded up"),
        (
            lambda x: torch.nn.functional.avg_pool2d(x, 2, divisor_override=3),
            "aten.avg_pool2d.default",
            "its divisor is given",
        ),
        (lambda x: x.repeat(1, 1, 1, 1, 1, 1, 1, 1, 1), "aten.repeat.default", "more than 8 axes"),
    ],
)  # fmt: skip
def test_what_is_not_converted_is_named(function: Any, op: str, why: str) -> None:
    import re

    refusals = dict(why_not(function, torch.randn(2, 4, 6, 8)))
    assert re.search(why, refusals[op])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x),
        lambda x: x.half(),
        lambda x: torch.nn.functional.avg_pool2d(x, 2).topk(3)[0],
        lambda x: x.max(dim=1)[0],
        lambda x: torch.logical_and(x > 0, x < 1),
        lambda x: x[:, torch.tensor([0, 2])],
        lambda x: torch.nn.functional.silu(x) * torch.rsqrt(x),
        lambda x: x + torch.special.i0(torch.ones(8)),  # of constants alone: folded
        lambda x: x.detach().split([1, 3], dim=1)[0],
    ],
)
def test_what_is_near_to_it_is_converted(function: Any) -> None:
    assert why_not(function, torch.randn(2, 4, 6, 8)) == []


def test_a_converter_for_fixed_sizes() -> None:
    """`aten.gather` is converted where sizes are fixed, and not where they are open."""

    def gather(x: Tensor) -> Tensor:
        return x.gather(1, (x > 0).long())

    x = torch.randn(4, 6)
    assert why_not(gather, x) == []
    open_batch = ({0: torch.export.Dim("batch", min=2, max=8)},)
    assert why_not(gather, x, open_batch) == [("aten.gather.default", "its converter takes fixed sizes alone")]


def test_open_splits_are_refused_beyond_what_the_validator_says() -> None:
    def split(x: Tensor) -> Tensor:
        return x.split([1, x.shape[0] - 1])[1]

    x = torch.randn(4, 6)
    assert why_not(split, x) == []
    (found_why,) = why_not(split, x, ({0: torch.export.Dim("batch", min=3, max=8)},))
    assert found_why == ("aten.split_with_sizes.default", "the sizes that it splits into are open")


# --- the data ---------------------------------------------------------------------------------------------------------


def test_names_are_operators_of_this_torch() -> None:
    known = release()
    foreign = {name for name in known.converters if op_of(name) is None}
    assert all(name.startswith("tensorrt.") for name in foreign)
    # A packet, which is registered beside its overload, is no target of a node.
    overloads = [name for name in known.converters if isinstance(op_of(name), torch._ops.OpOverload)]
    assert [name_of(op_of(name)) for name in overloads] == overloads
    assert name_of(operator.getitem) == "operator.getitem"
    assert name_of(torch.sym_min) == "torch.sym_min"
    assert len(overloads) > 200


def test_every_known_condition_is_one_of_the_release() -> None:
    named = {each.validator for converters in release().converters.values() for each in converters}
    assert VALIDATORS.keys() <= named


def test_the_decompositions_keep_what_has_a_converter() -> None:
    table = decomposition_table()
    for kept in (aten.scaled_dot_product_attention.default, aten.linear.default, aten.matmul.default):
        assert kept not in table
    for gone in (aten.layer_norm.default, aten.silu.default, aten.addcmul.default, aten.view.default):
        assert gone in table


def test_the_release_is_read_from_its_file() -> None:
    known = release()
    assert known.version in known.wheel
    assert known.plugin_types == ("TensorType", "FloatType", "IntType", "BoolType", "StringType")
    assert {"tensorrt", "torch_tensorrt"} <= set(known.backends)
    assert {"program", "exported_program"} & set(known.signatures["dynamo.compile"].names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=2), "the format is 2, and 1 is known"),
        (lambda d: d.pop("converters"), "there is no 'converters'"),
        (lambda d: d["converters"][0].update(dynamic="yes"), "dynamic is 'yes', and should be a bool"),
        (lambda d: d["decompositions"].update(enabled=[3]), "enabled is 3, and should be a str"),
        (lambda d: d["signatures"]["save"].pop("others"), "there is no 'others'"),
    ],
)
def test_a_broken_file_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    document = copy.deepcopy(json.loads(FILE.read_text(encoding="utf-8")))
    change(document)
    path = tmp_path / "converters.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        release(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        release(tmp_path / "nowhere.json")


def test_the_cases_are_of_the_zoo() -> None:
    assert set(QUICK) <= set(SITES) <= set(CASES)
