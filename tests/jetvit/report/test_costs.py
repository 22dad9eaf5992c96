"""`explain` with a latency table: every choice at every site, the whole model, and what the table does not know."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import ExportedProgram

from jetvit.api import find_attention, optimize
from jetvit.cost_model import Choice, Fingerprint, Measured, Plan, SitePlan
from jetvit.cost_model.predicting.device_costs import DeviceCosts
from jetvit.cost_model.predicting.estimate import Overheads
from jetvit.explain import explain
from jetvit.report.html import page
from jetvit.report.report import Report
from jetvit.report.rows import MeasuredChoice
from jetvit.report.text import WIDTH
from jetvit.report.words import latency_text
from tests.jetvit.costs import made_up_costs
from tests.jetvit.report.test_html import Page
from tests.zoo import CASES

FULL, WINDOW, LINEAR = Choice("full"), Choice("window", window=(8, 8)), Choice("linear")
LABELS = ("full", "window 8x8", "window 16x16", "linear relu", "linear relu conv3", "linear relu conv5")


@cache
def program(dynamic: bool = False) -> ExportedProgram:
    """Two sites of 16x24 tokens and one more, two images."""
    case = CASES["sdpa"]
    args = (torch.zeros(2, 3, 128, 192),)
    return torch.export.export(
        case.build(), args, dynamic_shapes=case.dynamic_shapes(args, {}) if dynamic else None, strict=False
    )


def plan_for(*choices: Choice, **changes: Any) -> Plan:
    sites = find_attention(program())
    recorded = (Measured(FULL, 0.0, 777.0), Measured(WINDOW, 0.02, 333.0))
    entries = (
        SitePlan(site.name, choice, "", None, None, recorded) for site, choice in zip(sites, choices, strict=True)
    )
    return Plan(tuple(entries), Fingerprint.of(sites), **changes)


def report_on(plan: Plan | None = None, costs: DeviceCosts | None = None, **options: Any) -> Report:
    return explain(program(**options), plan=plan, costs=costs or made_up_costs())


def test_every_choice_at_every_site():
    report = report_on()
    for row in report.rows:
        assert tuple(row.measured) == LABELS  # a window of 32 covers the grid
        assert row.measured["full"] == MeasuredChoice(None, 12.34, 12.0, 12.5, "measured", False)
        assert row.measured["window 16x16"] == (None, 16, pytest.approx(14.4), pytest.approx(17.6), "predicted", False)
        assert row.measured["linear relu conv3"] == MeasuredChoice(None, 1.5, 1.0, 2.25, "predicted", True)
    assert report.totals.latency_full_ms == pytest.approx(24.68)


def test_the_text_without_a_plan():
    text = str(report_on())
    assert "full ms\n0.attn" in text
    assert "now ms" not in text
    assert "drift" not in text.partition("note: ")[0]
    assert (
        "latency of one attention alone in ms, by what it becomes\n"
        "  0.attn and 1 more site\n"
        "    full               12.3\n"
        "    window 8x8         8 [7.20–8.80]\n"
        "    window 16x16       16 [14.4–17.6]\n"
        "    linear relu        1.5 [1.00–2.25]*\n"
        "    linear relu conv3  1.5 [1.00–2.25]*\n"
        "    linear relu conv5  1.5 [1.00–2.25]*\n"
    ) in text
    assert "Attention alone, summed over all sites: 24.7 ms." in text
    assert "Latencies: Some CPU with 2 threads, torch 2.13.0; measured there, or predicted with a 90 %" in text
    assert "* predicted beyond the sizes that the table holds" in text
    assert "no drift was measured" in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_the_table_takes_the_place_of_the_plans_latencies_and_leaves_its_drifts():
    report = report_on(plan_for(WINDOW, FULL))
    first, second = report.rows
    assert [first.decision, second.decision] == ["window 8x8", "full"]
    assert (first.drift, first.full_ms, first.chosen_ms) == (0.02, 12.34, 8)
    assert first.measured["full"].drift == 0.0
    assert first.measured["window 16x16"].drift is None
    assert report.totals.latency_chosen_ms == pytest.approx(20.34)
    text = str(report)
    assert "8 [7.20–8.80]" in text
    assert "777" not in text
    assert "333" not in text
    assert "summed over all sites: 24.7 ms → 20.3 ms (1.21×)." in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_a_choice_of_the_plan_that_is_none_of_the_usual_is_shown():
    report = report_on(plan_for(Choice("window", window=(4, 6)), FULL))
    assert report.rows[0].measured["window 4x6"].latency_ms == 4
    assert "window 4x6" not in report.rows[1].measured


def test_a_window_that_covers_the_grid_takes_as_long_as_full_attention():
    report = report_on(plan_for(Choice("window", window=(64, 64)), FULL))
    assert report.rows[0].decision == "full"
    assert report.rows[0].chosen_ms == 12.34


def test_the_whole_model_with_and_without_the_plan():
    report = report_on(plan_for(WINDOW, FULL))
    full, planned = report.estimate_full, report.estimate_plan
    assert full is not None
    assert planned is not None
    assert full.ms - planned.ms == pytest.approx(12.34 - 8)
    assert planned.measured_share < full.measured_share == 1.0
    text = " ".join(str(report).split())
    assert f"The whole model, compiled: about {full.ms:.3g} ms [" in text
    assert f"with the plan {planned.ms:.3g} ms [" in text
    assert "the plain sum of its operations, for the table has no whole runs" in text
    fitted = report_on(costs=made_up_costs(overheads={"compiled": Overheads(100.0)}))
    assert fitted.estimate_full is not None
    assert fitted.estimate_full.ms == pytest.approx(full.ms + 100)
    assert fitted.estimate_plan is None
    assert "plain sum" not in str(fitted)


def test_open_sizes_have_no_latency_and_a_note_says_why():
    report = report_on(dynamic=True)
    assert [row.measured for row in report.rows] == [{}, {}]
    assert report.estimate_full is None
    text = " ".join(str(report).split())
    assert "The table tells nothing of 2 sites whose sizes are open" in text
    assert "The latency of the whole model is not known: the sizes of its input image are open." in text


def test_what_the_table_does_not_know_is_one_note():
    report = report_on(plan_for(WINDOW, FULL), made_up_costs(unknown=("window", "gemm")))
    assert report.rows[0].measured["window 8x8"] == MeasuredChoice(0.02, None)
    assert report.rows[0].chosen_ms is None
    assert report.rows[0].measured["window 16x16"] == MeasuredChoice(None, None)
    assert "    window 16x16       –\n" in str(report)
    assert (report.estimate_full, report.estimate_plan) == (None, None)
    notes = [note for note in report.notes if "known" in note or "know" in note]
    assert len(notes) == 2
    assert "no window was measured (and 1 more like it)." in notes[0]
    assert notes[1].startswith("The latency of the whole model is not known: gemm")


def test_a_plan_that_cannot_be_applied_leaves_the_model_without_it():
    report = report_on(plan_for(Choice("linear", conv_size=3), FULL))
    assert report.estimate_full is not None
    assert report.estimate_plan is None
    assert any("with the plan is not known: the plan has no weights" in note for note in report.notes)


def test_a_rewritten_model_is_estimated_as_it_is():
    plan = plan_for(WINDOW, FULL)
    report = explain(optimize(program(), plan=plan), plan=plan, costs=made_up_costs())
    expected = report_on(plan).estimate_plan
    assert expected is not None
    assert report.estimate_full is not None
    assert report.estimate_full.ms == pytest.approx(expected.ms)
    assert report.estimate_plan is None


def test_the_dict_and_the_page_say_the_same():
    report = report_on(plan_for(WINDOW, FULL))
    data = report.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["table"] == {"machine": "Some CPU with 2 threads", "torch": "2.13.0", "overheads": False}
    assert set(data["estimate_plan"]) == {"ms", "low", "high", "measured_share", "extrapolated"}
    assert data["sites"][0]["measured"]["linear relu"]["source"] == "predicted"
    text = page(report)
    for words in ("8 [7.20–8.80]", "1.5 [1.00–2.25]*", "Some CPU with 2 threads", "The whole model, compiled"):
        assert words in text
    assert text.count("<svg") == 2  # the table's bars, and the map of the plan's drifts
    bare = page(report_on())
    assert "16 [14.4–17.6]" in bare
    assert bare.count("<svg") == 2  # the bars, and a strip, for there is no drift
    assert page(report_on(dynamic=True)).count("<svg") == 1


def test_the_bars_are_one_panel_for_sites_that_are_alike():
    text = page(report_on())
    Page(text)  # every element is closed
    picture = text[text.index("<svg") : text.index("</svg>")]
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", picture)
    assert [one for one in shown if one in LABELS] == list(LABELS)
    assert {"blocks.0.attn", "and 1 more site, latency (ms)"} <= set(shown)
    assert {"12.3", "8 [7.20–8.80]", "1.5 [1.00–2.25]*"} <= set(shown)


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (None, "–"),
        (MeasuredChoice(0.1, None), "–"),
        (MeasuredChoice(None, 12.34), "12.3"),
        (MeasuredChoice(None, 12.34, 11, 13.8, "measured"), "12.3"),
        (MeasuredChoice(None, 12.34, 11, 13.8, "predicted"), "12.3 [11.0–13.8]"),
        (MeasuredChoice(None, 0.05, 0.04, 0.0612, "predicted", True), "0.05 [0.0400–0.0612]*"),
        (MeasuredChoice(None, 1234, 999.7, 2000, "predicted"), "1,234 [1,000–2,000]"),
    ],
)
def test_a_latency_as_text(one: MeasuredChoice | None, text: str):
    assert latency_text(one) == text


def test_the_command_takes_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    from jetvit.cli import main
    from jetvit.cost_model.measuring.table import TableWriter
    from tests.cost_model.tables import MACHINE, measurement

    table = tmp_path / "cpu.csv"
    with TableWriter(table, MACHINE) as writer:
        writer.append(measurement(64))
    model = ("timm:vit_tiny_patch16_224", "--model-arg=depth=1", "--model-arg=embed_dim=32", "--model-arg=num_heads=2")
    assert main(["explain", *model, "--size", "64x96", "--table", str(table)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Latencies: Some CPU with 2 threads, torch 2.13.0" in out
    assert "no full float32 was measured" in out
    assert main(["explain", *model, "--size", "64x96", "--table", "no-such-table"]) == 1
    assert "no latency table no-such-table" in capsys.readouterr().err
