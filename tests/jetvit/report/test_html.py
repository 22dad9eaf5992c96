"""The HTML page of a report: one safe, self-contained, repeatable file whose pictures say what the table says."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from jetvit.cost_model import FrontPoint
from jetvit.patterns.errors import InputError
from jetvit.report import plots as report_plots
from jetvit.report.content import Totals
from jetvit.report.html import page
from jetvit.report.plan import NOTHING_MEASURED, PlanSummary
from jetvit.report.report import Report
from jetvit.report.rows import MeasuredChoice, SiteRow

VOID = {"meta", "br", "wbr"}
EVIL = "<script>alert('$x^2$ & \"quotes\"')</script>"


class Page(HTMLParser):
    """Checks that every element is closed in order, and gathers what the tests ask for."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.count: Counter[str] = Counter()
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attributes]
        self.ids += [value or "" for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def row(index: int, decision: str = "full", **changes: object) -> SiteRow:
    measured = {
        "full": MeasuredChoice(0.0, 2.0),
        "window 16x16": MeasuredChoice(0.001 * (index + 1), 0.5),
        "window 8x8": MeasuredChoice(0.01 * (index + 1), 0.25),
        "linear relu": MeasuredChoice(1.5, None),
    }
    values = {
        **{"name": f"encoder.layer.{index}.attention", "status": "found", "tokens": 2645, "grid": "44×60"},
        **{"extra_before": 5, "extra_after": 0, "num_heads": 12, "head_dim": 64, "dtype": "bfloat16", "rope": "half"},
        **{"form": "sdpa", "projections": "separate", "decision": decision, "measured": measured},
    }
    return SiteRow(**(values | changes))  # type: ignore[arg-type]


def report(count: int = 12, **changes: object) -> Report:
    sites = tuple(row(index, "window 16x16" if index % 3 else "full", why="because") for index in range(count))
    plan = PlanSummary(
        size=(704, 960),
        trained=False,
        joint_drift_selection=0.2,
        joint_drift_held_out=None,
        images_selection=8,
        images_held_out=None,
        max_drift=0.35,
        device="NVIDIA H100",
        torch="2.13.0",
        measured_size=None,
        dtype="bfloat16",
        front=tuple(FrontPoint(changed, 0.03 * changed, 24.0 - changed) for changed in range(count + 1)),
        chosen=8,
    )
    totals = Totals(count, 0, 0, count * 2 // 3, count, 24.0, 12.0)
    fields = {"model": "DINOv3", "inputs": (("image", ("B", 3, "H", "W"), "bfloat16"),), "rows": sites}
    return Report(**(fields | {"totals": totals, "plan": plan} | changes))  # type: ignore[arg-type]


def bare() -> Report:
    """Nothing measured, one site refused."""
    refused = SiteRow(
        "head.attention", "refused", "cross attention", "bmm", "/long/way/to/model.py:12 in forward: x = y"
    )
    rows = (*(replace(one, measured={}, decision="full") for one in report().rows), refused)
    totals = Totals(12, 1, 0, 0, 0, None, None)
    return replace(report(), rows=rows, totals=totals, plan=None, notes=(NOTHING_MEASURED,))


@pytest.mark.parametrize("sites", [1, 12, 24, 40])
def test_the_page_is_well_formed_and_loads_nothing(sites: int):
    text = page(report(sites))
    parsed = Page(text)
    assert parsed.count["svg"] == 2
    assert parsed.count["table"] == 2
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert not parsed.count["script"] + parsed.count["img"] + parsed.count["image"] + parsed.count["link"]
    assert "http:" not in text
    assert "https:" not in text
    assert all(value.startswith("#") for _, name, value in parsed.attributes if value and "href" in name)
    references = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    assert references <= set(parsed.ids)


def test_the_pictures_are_xml_and_described():
    pictures = re.findall(r"<svg.*?</svg>", page(report()), flags=re.DOTALL)
    for picture in pictures:
        root = ElementTree.fromstring(picture.replace("xlink:href", "href"))
        assert root.get("role") == "img"
        assert len(root.get("aria-label", "")) > 20


def test_every_text_of_a_model_or_plan_is_escaped():
    rows = (
        row(0, name=f"layer.0.{EVIL}", why=EVIL, decision="window 8x8"),
        row(1, name="layer.1", measured={EVIL.replace("<", "linear <", 1): MeasuredChoice(0.1, 0.2)}),
        SiteRow(f"layer.2{EVIL}", "refused", EVIL, EVIL, EVIL),
    )
    plan = report().plan
    assert plan is not None
    evil = report(
        model=EVIL,
        inputs=((EVIL, (EVIL,), EVIL),),
        rows=rows,
        plan=replace(plan, device=EVIL, torch=EVIL, dtype=EVIL, measured_size=EVIL),
        warnings=(EVIL,),
        notes=(EVIL,),
    )
    for text in (page(evil), page(replace(evil, rows=tuple(replace(one, measured={}) for one in rows)))):
        parsed = Page(text)
        assert not parsed.count["script"]
        assert "<script" not in text
        assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
        assert parsed.text.count(EVIL) >= 10
    assert "Content-Security-Policy" in text


def test_control_characters_are_left_out():
    assert "\x1b" not in page(report(model="a\x1b[31mb\x00"))


def test_the_same_report_gives_the_same_bytes(tmp_path: Path):
    one, two = tmp_path / "one.html", tmp_path / "two.html"
    report(24).to_html(one)
    report(24).to_html(two)
    assert one.read_bytes() == two.read_bytes()
    assert one.read_text(encoding="utf-8") == page(report(24))


def test_the_readers_matplotlib_settings_play_no_part():
    import matplotlib

    expected = page(report())
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": "other", "axes.grid": True, "text.color": "red"}):
        assert page(report()) == expected


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="does not exist"):
        report().to_html(tmp_path / "no" / "report.html")
    target = tmp_path / "report.html"
    target.write_text("old")
    monkeypatch.setattr(report_plots, "svg", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report().to_html(target)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("report.html", "old")]


def test_the_map_prints_each_number_and_outlines_the_decisions():
    some = report(3)
    missing = replace(some.rows[2], measured={"full": MeasuredChoice(0.0, 3.0)})
    text = page(replace(some, rows=(*some.rows[:2], missing)))
    picture = text[text.index("<svg") : text.index("</svg>")]
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", picture)
    assert [one for one in shown if "x" in one or one == "full"] == ["full", "window 8x8", "window 16x16"]
    assert {"0.01", "0.02", "0.001", "0.002", "1.5", "0.attention", "2–3 ms", "0.25 ms", "not timed"} <= set(shown)
    assert shown.count("not measured") == 3
    assert len(re.findall(r"<text[^>]*(?:bold|700)[^>]*>", picture)) == 3  # a decision that was not measured, too


def test_the_front_marks_this_plan_and_the_limit():
    text = page(report())
    picture = text[text.rindex("<svg") : text.rindex("</svg>")]
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", picture)
    assert {"this plan: 8 sites changed", "limit 0.35", "0", "12", "latency of all attention together (ms)"} <= set(
        shown
    )


def test_a_front_without_latencies_counts_the_changed_sites():
    plan = report().plan
    assert plan is not None
    untimed = replace(plan, front=tuple(FrontPoint(n, 0.1 * n) for n in range(4)), max_drift=None, chosen=None)
    text = page(report(plan=untimed))
    assert "sites changed" in text
    assert "limit" not in text
    assert "this plan:" not in text
    assert Page(page(report(plan=replace(plan, front=())))).count["svg"] == 1


def test_nothing_measured_is_a_strip_and_says_how_to_measure():
    parsed = Page(page(bare()))
    assert parsed.count["svg"] == 1
    assert parsed.count["table"] == 1
    assert "jetvit calibrate" in parsed.text
    label = next(value for tag, name, value in parsed.attributes if (tag, name) == ("svg", "aria-label"))
    assert label is not None
    assert "12 full, 13 refused" in label
    assert "cross attention" in parsed.text
    assert "/long/way/to/model.py:12 in forward: x = y" in parsed.text


def test_a_model_without_attention_has_no_pictures():
    empty = replace(report(), rows=(), plan=None, totals=Totals(0, 0, 0, 0, 0, None, None), notes=("check",))
    parsed = Page(page(empty))
    assert not parsed.count["svg"] + parsed.count["table"]
    assert "No attention was found" in parsed.text
