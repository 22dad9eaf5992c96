"""`explain`: one row an attention, what the plan makes of it, and a text that a stranger can read."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jetvit.api import optimize
from jetvit.cost_model import Choice, Fingerprint, FrontPoint, Measured, Plan, SitePlan, base_record, sample_base
from jetvit.explain import explain
from jetvit.passes.frontends.capture import capture
from jetvit.passes.pipeline import rewrite
from jetvit.patterns.errors import PlanError
from jetvit.patterns.find import find_sites
from jetvit.report.report import Report
from jetvit.report.rows import MeasuredChoice
from jetvit.report.text import WIDTH, common_prefix
from jetvit.report.words import shorten
from tests.zoo import CASES

WINDOW, LINEAR = Choice("window", window=(2, 3)), Choice("linear")
PROVENANCE = {
    "joint_drift_selection": 0.31,
    "joint_drift_held_out": 0.33,
    "images_selection": 16,
    "images_held_out": 1,
    "max_drift": 0.35,
    "device": "NVIDIA H100",
    "torch": "2.13.0",
    "size": [32, 48],
    "dtype": "bfloat16",
}


@cache
def graph_of(name: str, dynamic: bool = False) -> Any:
    """The graph of a case of the zoo, shared by the tests that only read it."""
    return fresh_graph_of(name, dynamic)


def fresh_graph_of(name: str, dynamic: bool = False) -> Any:
    case = CASES[name]
    args, kwargs = case.inputs()
    return capture(case.build(), args, kwargs, case.dynamic_shapes(args, kwargs) if dynamic else None)


def report_on(name: str, plan: Plan | None = None, dynamic: bool = False) -> Report:
    graph = graph_of(name, dynamic)
    return Report.from_sites(find_sites(graph), plan, "TinyViT", graph=graph)


def plan_for(name: str, choice: Choice = WINDOW, **changes: Any) -> Plan:
    """A plan with made-up measurements: `choice` everywhere but at the first site of several."""
    sites = find_sites(graph_of(name))
    measured = (
        Measured(Choice("full"), 0.0, 2.0),
        Measured(WINDOW, 0.0123, 0.5),
        Measured(LINEAR, 1.5, 0.4),
    )
    picks = [Choice("full") if len(sites) > 1 and index == 0 else choice for index in range(len(sites))]
    fields: dict[str, Any] = {
        "sites": tuple(
            SitePlan(
                site.name,
                pick,
                "the first block is worth its time" if pick.kind == "full" else "",
                None,
                None,
                measured,
            )
            for site, pick in zip(sites, picks, strict=True)
        ),
        "fingerprint": Fingerprint.of(sites),
        "provenance": PROVENANCE,
        "size": (32, 48),
        "front": (FrontPoint(0, 0.0, 4.0), FrontPoint(1, 0.31, 2.5), FrontPoint(2, 0.6, 1.0)),
    }
    return Plan(**(fields | changes))


GOLDEN = """\
TinyViT
input image [2, 3, 32, 48] float32

every name starts with blocks.
every site found: float32, no RoPE, softmax between two products, packed q, k, v

site    tokens  grid  extra tokens  heads×dim  decision     drift  full ms  now ms
0.attn      25   4×6  1 before           2×16  window 2x3  0.0123        2     0.5
1.attn  refused
    the attention weights are used by select (aten.select.int)
    node select, …/tests/zoo/refused.py:LINE in forward: return self.norm(x), weights[:, :, 0, 1:]

drift: how far the model's output moves if this site alone is changed (0: not at all, 1: as far off as its mean). ms:
latency of this attention alone.

2 attention sites: 1 can be rewritten, 1 refused.
The plan changes 1 of 1 site: 1 window 2x3.
Attention alone, summed over all sites: 2 ms → 0.5 ms (4.00×), measured on NVIDIA H100, bfloat16, 32×48, torch 2.13.0.
Drift of the model's output, all changes together: 0.31 on 16 images of the selection, 0.33 on 1 image held out; at most
  0.35 was asked for.
note: This plan is training-free. Windows in the place of full attention give a modest gain that way. Linear attention
  is hopeless without training: it puts another function of the same weights in the place of the softmax. A trained
  post-training search brings the rest: in the JetViT paper two full-attention blocks suffice, at 1.79× the throughput."""  # noqa: E501


def test_the_text_of_a_found_and_a_refused_site():
    text = str(report_on("weights_returned", plan_for("weights_returned")))
    assert re.sub(r"\.py:\d+", ".py:LINE", text) == GOLDEN


@pytest.mark.parametrize(
    "name", ["hf_dinov3_sdpa", "timm_vit_fused", "hf_siglip_sdpa", "hf_beit_sdpa", "windows", "extra_both"]
)
def test_a_row_for_each_attention_of_the_zoo(name: str):
    case = CASES[name]
    report = report_on(name)
    found = [row for row in report.rows if row.status == "found"]
    refused = [row for row in report.rows if row.status == "refused"]
    assert (len(found), len(refused)) == (report.totals.found, report.totals.refused)
    assert tuple(row.name for row in found) == case.names[: case.sites]
    for row in found:
        h, w = case.grid(case.size)
        assert row.tokens == case.extra_before + h * w + case.extra_after
        assert (row.grid, row.extra_before, row.extra_after) == (f"{h}×{w}", case.extra_before, case.extra_after)
        assert (row.num_heads, row.head_dim, row.rope) == (case.num_heads, case.head_dim, case.rope)
        assert (row.decision, row.dtype) == ("full", "float32")
    text = str(report)
    for row in refused:
        assert any(re.search(words, row.reason) for words in case.rejections)
        assert re.search(r"\.py:\d+ in \w+: ", row.source)
        assert row.reason in text
        assert re.search(r"\S+\.py:\d+ in \w+", row.source.rsplit("/", 1)[-1])[0] in text  # type: ignore[index]
    assert max(map(len, text.splitlines())) <= WIDTH


def test_projections_are_told_apart():
    assert {row.projections for row in report_on("separate").rows} == {"separate"}
    assert {row.projections for row in report_on("sdpa").rows} == {"packed"}


def test_rows_are_in_the_order_of_execution_whatever_their_status():
    assert [row.name for row in report_on("weights_returned").rows] == ["blocks.0.attn", "blocks.1.attn"]
    assert [row.status for row in report_on("hf_siglip_sdpa").rows] == ["found", "found", "refused"]
    assert [row.name for row in report_on("autocast_model").rows] == ["blocks.0.attn", "blocks.1.attn"]


def test_symbolic_sizes_are_in_the_letters_of_the_input():
    report = report_on("extra_both", dynamic=True)
    assert report.inputs == (("image", ("B", 3, "H", "W"), "float32"),)
    row = report.rows[0]
    assert (row.tokens, row.grid, row.extra_before) == ("(H//8)*(W//8) + 5", "H//8 × W//8", 2)
    refused = report_on("hf_siglip_sdpa", dynamic=True).rows[-1]
    assert refused.reason == "cross attention: 1 learned query attends to (H//8)*(W//8) tokens"
    json.dumps(report.to_dict(), allow_nan=False)


def test_without_a_graph_symbols_keep_their_names():
    report = Report.from_sites(find_sites(graph_of("sdpa", dynamic=True)))
    assert re.fullmatch(r"s\d+//8 × s\d+//8", str(report.rows[0].grid))
    assert report.inputs == ()


def test_a_plan_changes_the_decisions_and_sums_the_latencies():
    report = report_on("sdpa", plan_for("sdpa"))
    assert [row.decision for row in report.rows] == ["full", "window 2x3"]
    assert [row.drift for row in report.rows] == [0.0, 0.0123]
    assert report.rows[1].measured["linear relu"] == MeasuredChoice(1.5, 0.4)
    totals = report.totals
    assert (totals.changed, totals.measured, totals.latency_full_ms, totals.latency_chosen_ms) == (1, 2, 4.0, 2.5)
    assert report.plan is not None
    assert report.plan.chosen == 1
    assert report.warnings == ()
    assert "the first block is worth its time" in str(report)


def test_long_reasons_stand_below_the_table_once_each():
    plan = plan_for("hf_siglip_sdpa")
    text = str(report_on("hf_siglip_sdpa", plan, dynamic=True))
    assert re.search(r"^encoder.lay\S*…\S*.0.self_attn  .* \[1\]$", text, flags=re.MULTILINE)
    assert text.count("\n[1] the first block is worth its time\n") == 1
    assert max(map(len, text.splitlines())) <= WIDTH


def test_sites_without_measurements_are_left_out_of_the_sum():
    plan = plan_for("sdpa")
    bare = SitePlan(plan.sites[0].name, Choice("full"))
    report = report_on("sdpa", plan_for("sdpa", sites=(bare, plan.sites[1])))
    assert (report.totals.measured, report.totals.latency_full_ms) == (1, 2.0)
    assert "summed over 1 of 2 sites: 2 ms → 0.5 ms" in str(report)


def test_a_choice_counts_by_its_own_numbers_where_measured_has_it_not():
    sites = find_sites(graph_of("sdpa"))
    plan = plan_for("sdpa", sites=tuple(SitePlan(site.name, WINDOW, "", 0.2, 0.7) for site in sites))
    report = report_on("sdpa", plan)
    assert report.rows[0].measured == {"window 2x3": MeasuredChoice(0.2, 0.7)}
    assert report.totals.latency_full_ms is None


def test_a_window_that_covers_the_grid_is_full_attention():
    report = report_on("sdpa", plan_for("sdpa", Choice("window", window=(16, 16))))
    assert report.totals.changed == 0
    assert report.rows[1].decision == "full"
    assert report.rows[1].why == "window 16x16 covers the whole grid, which is full attention"


def test_a_plan_of_another_model_is_refused():
    with pytest.raises(PlanError, match="the plan is for another model"):
        report_on("sdpa", plan_for("hf_dinov3_sdpa"))
    with pytest.raises(PlanError, match="head"):
        report_on("single_head", plan_for("sdpa"))


def test_a_plan_is_read_from_its_folder(tmp_path: Path):
    plan = plan_for("sdpa")
    plan.save(tmp_path / "plan")
    case = CASES["sdpa"]
    args, kwargs = case.inputs()
    report = explain(case.build(), *args, plan=tmp_path / "plan", kwargs=kwargs)
    assert report.model == "TinyViT"
    assert report == report_on("sdpa", plan)
    with pytest.raises(PlanError, match="there is no plan"):
        explain(case.build(), *args, plan=tmp_path / "none")


def test_an_exported_program_needs_no_inputs():
    case = CASES["sdpa"]
    args, _ = case.inputs()
    program = torch.export.export(case.build(), args)
    assert explain(program).rows == report_on("sdpa").rows


def test_a_rewritten_graph_says_so():
    plan, graph = plan_for("sdpa"), fresh_graph_of("sdpa")
    rewrite(graph, plan)
    report = Report.from_sites(find_sites(graph), plan, graph=graph)
    assert [row.status for row in report.rows] == ["found", "rewritten"]
    row = report.rows[1]
    assert (row.decision, row.tokens, row.grid, row.extra_before, row.extra_after) == ("window 2x3", 25, "4×6", 1, 0)
    assert (row.num_heads, row.head_dim, row.dtype) == (2, 16, "float32")
    assert "window 2x3 (done)" in str(report)
    assert "1 can be rewritten, 0 refused, 1 rewritten already" in str(report)
    assert report.warnings == ()
    other = Report.from_sites(find_sites(graph), plan_for("sdpa", LINEAR), graph=graph)
    assert other.warnings == (
        "blocks.1.attn was rewritten by another plan: it is window 2x3 in the graph and linear relu in this plan",
    )


def test_an_optimized_module_keeps_the_names_of_its_sites():
    case, plan = CASES["sdpa"], plan_for("sdpa")
    args, _ = case.inputs()
    report = explain(optimize(case.build(), *args, plan=plan), plan=plan)
    assert [(row.name, row.decision) for row in report.rows] == [
        ("blocks.0.attn", "full"),
        ("blocks.1.attn", "window 2x3"),
    ]
    assert (report.model, report.warnings) == ("OptimizedModule", ())


def test_a_rewritten_dynamic_graph_keeps_its_letters():
    graph = fresh_graph_of("extra_both", dynamic=True)
    rewrite(graph, plan_for("extra_both", LINEAR))
    row = Report.from_sites(find_sites(graph), graph=graph).rows[1]
    assert (row.tokens, row.grid, row.extra_after) == ("(H//8)*(W//8) + 5", "H//8 × W//8", 3)


def test_warnings_for_another_size_and_other_weights():
    weights = dict(CASES["sdpa"].build().named_parameters())
    fits = plan_for("sdpa", base=base_record(weights))
    assert report_on("sdpa", fits).warnings == ()
    other = plan_for("sdpa", size=(512, 512), base=base_record({name: 2 * value for name, value in weights.items()}))
    far, base = report_on("sdpa", other).warnings
    assert far.startswith("the plan was made for images of 512×512, and this one is 32×48")
    assert base.startswith("the plan was made on other weights")
    assert "warning: the plan was made on other weights" in str(report_on("sdpa", other))


def test_a_trained_plan_on_other_weights_will_be_refused():
    weights = {name: value.detach() for name, value in CASES["sdpa"].build().named_parameters()}
    name = "blocks.1.attn.qkv.weight"
    samples = sample_base({name: weights[name] * 2})
    report = report_on("sdpa", plan_for("sdpa", weights={name: weights[name]}, base_samples=samples))
    assert report.plan is not None
    assert report.plan.trained
    assert report.warnings[0].startswith("the plan will be refused: a base weight is not the one")
    assert not any("training-free" in note for note in report.notes)


def test_the_base_of_a_larger_model_is_compared_as_far_as_it_goes():
    inner = CASES["sdpa"].build()
    record = base_record(
        {f"backbone.{name}": value for name, value in inner.named_parameters()} | {"head": torch.ones(3)}
    )
    small = plan_for("sdpa")
    larger = Plan(
        sites=tuple(SitePlan(f"backbone.{site.name}", site.choice) for site in small.sites),
        fingerprint=small.fingerprint.within("", "backbone"),
        base=record,
    )
    report = report_on("sdpa", larger)
    assert report.warnings == ()
    assert [row.decision for row in report.rows] == ["full", "window 2x3"]


def test_a_model_without_attention_says_what_to_check():
    report = explain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8))
    text = str(report)
    assert report.rows == ()
    assert "No attention was found in this model." in text
    assert "flash_attn" in text


def test_without_measurements_it_says_how_to_measure():
    assert "jetvit calibrate" in str(report_on("sdpa"))
    assert "jetvit calibrate" not in str(report_on("sdpa", plan_for("sdpa")))


def test_the_dict_is_json_with_stable_keys():
    data = report_on("weights_returned", plan_for("weights_returned")).to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert list(data) == [
        *("schema_version", "model", "inputs", "sites", "totals", "plan", "warnings", "notes"),
        *("table", "estimate_full", "estimate_plan"),
    ]
    assert [data[key] for key in ("table", "estimate_full", "estimate_plan")] == [None] * 3
    assert data["inputs"] == [{"name": "image", "shape": [2, 3, 32, 48], "dtype": "float32"}]
    assert set(data["sites"][0]) == {
        *("name", "status", "reason", "node", "source", "tokens", "grid", "extra_before", "extra_after", "num_heads"),
        *("head_dim", "dtype", "rope", "form", "projections", "decision", "why", "measured"),
    }
    assert data["sites"][0]["measured"]["window 2x3"] == {
        **{"drift": 0.0123, "latency_ms": 0.5, "low_ms": None, "high_ms": None, "source": None},
        **{"extrapolated": False},
    }
    assert data["sites"][1]["status"] == "refused"
    assert data["totals"] == {
        **{"found": 1, "refused": 1, "rewritten": 0, "changed": 1, "measured": 1},
        **{"latency_full_ms": 2.0, "latency_chosen_ms": 0.5},
    }
    assert data["plan"] == {
        **{key: value for key, value in PROVENANCE.items() if key != "size"},
        **{"size": [32, 48], "measured_size": "32×48", "trained": False, "chosen": 1},
        "front": [point.to_json() for point in plan_for("weights_returned").front],
    }


def test_numbers_that_are_none_and_odd_provenance_stay_json():
    nan, inf = float("nan"), float("inf")
    odd = {"joint_drift_selection": "much", "images_selection": True, "max_drift": [1], "torch": 2.13}
    sites = (SitePlan("blocks.1.attn", WINDOW, "", nan, inf),)
    plan = plan_for("sdpa", sites=sites, provenance=odd, front=(FrontPoint(1, nan, 1.0), FrontPoint(1, 0.5, inf)))
    data = report_on("sdpa", plan).to_dict()
    json.dumps(data, allow_nan=False)
    assert data["sites"][1]["measured"] == {}
    assert [data["plan"][key] for key in ("joint_drift_selection", "images_selection", "max_drift")] == [None] * 3
    assert data["plan"]["torch"] == "2.13"
    assert data["plan"]["front"] == [{"changed": 1, "drift": 0.5, "latency_ms": None}]


def test_control_characters_do_not_reach_the_terminal():
    plan = plan_for("sdpa", provenance={"joint_drift_selection": 0.1, "device": "\x1b[31mred\x07"}, weights={})
    text = str(report_on("sdpa", plan))
    assert "[31mred" in text
    assert all(char.isprintable() or char == "\n" for char in text)


def test_names_are_shortened_in_the_middle_and_share_a_prefix():
    assert shorten("encoder.layer.attention", 11) == "encod…ntion"
    assert len(shorten("x" * 50, 12)) == 12
    assert shorten("short", 5) == "short"
    rows = report_on("sdpa").rows
    assert common_prefix(rows) == "blocks."
    assert common_prefix(rows[:1]) == ""
