"""Every page that jetvit writes fits a phone, a tablet and a laptop: in a browser, where there is one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jetvit.cost_model import FrontPoint
from jetvit.demo.page import PICTURES, demo_page, draw_rooms
from jetvit.report.html import page
from jetvit.report.plots import KINDS
from jetvit.report.rows import MeasuredChoice, SiteRow
from jetvit.report.words import number
from tests.jetvit.browser import WIDTHS, layout_faults
from tests.jetvit.demo.test_walkthrough import made_up_demo
from tests.jetvit.report.test_costs import FULL, WINDOW, plan_for, report_on
from tests.jetvit.report.test_html import bare, report, row

LONG = "backbone.encoder.stages.2.blocks.{}.attention_with_a_rather_long_name.self_attention.core"
TITLE = "timm:" + "vit_giant_patch14_with_a_name_that_breaks_nowhere" * 4


def long_page() -> str:
    """28 sites with long names, reasons and paths, and one that is refused."""
    sites = [
        row(index, "window 8x8", name=LONG.format(index), why="a reason of many words " * 6) for index in range(28)
    ]
    for index, site in enumerate(sites):
        slow = {"linear relu_centred conv3": MeasuredChoice(1e-5 * index, 1234.5)}
        sites[index] = replace(site, measured={**site.measured, **slow})
    path = f"/home/{'a_long_folder/' * 12}model.py:1234 in forward: x = scaled_dot_product_attention(query, key, value)"
    refused = SiteRow(LONG.format("x"), "refused", "cross attention", "scaled_dot_product_attention_17", path)
    return page(report(28, model=TITLE, rows=(*sites, refused), warnings=(TITLE,), notes=(f"see {TITLE}",)))


def demo(folder: Path) -> str:
    """The page of a demo, with pictures of the size that they have."""
    rooms, depth = torch.rand(2, 3, 32, 32), torch.rand(2, 32, 32)
    for name in PICTURES:
        draw_rooms(folder / name, rooms, [("depth", depth), ("original", depth), ("plan", depth)])
    test = {
        **{"original": {"delta1": 0.8}, "plan": {"delta1": 0.79}, "plan_minus_original": [-0.01, -0.02, 0.0]},
        **{"non_inferior_to_original": False, "margin": 0.005},
    }
    return demo_page(made_up_demo({"test": test, "images_test": 32}), report(8), folder)


def test_nothing_is_clipped_at_the_widths_of_a_phone_a_tablet_and_a_laptop(tmp_path: Path):
    plan = report().plan
    assert plan is not None
    steep = tuple(FrontPoint(n, 1e-5 * n, 5.0 - 1e-4 * n) for n in range(41))
    pages = {
        "one site": page(report(1)),
        "a plan": page(report(24)),
        "a steep front": page(report(40, plan=replace(plan, front=steep, max_drift=2e-5))),
        "long names": long_page(),
        "nothing measured": page(replace(bare(), rows=bare().rows * 3, model=TITLE)),
        "a table": page(report_on()),
        "a table and a plan": page(report_on(plan_for(WINDOW, FULL))),
        "the demo": demo(tmp_path),
    }
    found = layout_faults(pages, tmp_path)
    assert len(found) == len(WIDTHS) * len(pages)
    assert {where: faults for where, faults in found.items() if faults} == {}


def test_the_browser_notices_what_does_not_fit(tmp_path: Path):
    pages = {
        "wide": f"<!DOCTYPE html><p>{'x' * 900}",
        "clipped": f'<!DOCTYPE html><p style="overflow: hidden">{"x" * 900}',
        "svg": '<!DOCTYPE html><svg width="40" height="20"><text y="10">beyond its picture</text></svg>',
        "two": '<!DOCTYPE html><svg width="90" height="20"><text y="12">one</text><text y="12">two</text></svg>',
        "box": f'<!DOCTYPE html><div style="overflow-x: auto"><p>{"x" * 900}</p></div>',
    }
    found = layout_faults(pages, tmp_path, widths=[390])
    assert any("pixels wide" in fault for fault in found["wide at 390"])
    assert any("clipped" in fault for fault in found["clipped at 390"])
    assert any("outside its picture" in fault for fault in found["svg at 390"])
    assert any("on each other" in fault for fault in found["two at 390"])
    assert found["box at 390"] == []


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb", as WCAG 2.2 defines it."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return sum(weight * each for weight, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Contrast of two colours, from 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_text_is_readable_on_light_and_on_dark_pages():
    colours = r"--ink: (#\w+); --muted: (#\w+); --paper: (#\w+); --line: #\w+; --alarm: (#\w+)"
    themes = re.findall(colours, page(report()))
    assert len(themes) == 2
    for ink, muted, paper, alarm in themes:
        assert min(contrast(each, paper) for each in (ink, muted, alarm)) >= 4.5
        assert min(contrast(each, paper) for each in KINDS.values()) >= 3
    assert min(contrast(each, "#ffffff") for each in KINDS.values()) >= 4.5


def test_ticks_are_plain_numbers():
    plan = report().plan
    assert plan is not None
    for drift, latency in ((1e-7, 1e-6), (1e-4, 1e7), (1e-6, 2e-4)):
        front = tuple(FrontPoint(n, drift * n, 1000 * latency - latency * n) for n in range(9))
        text = page(report(plan=replace(plan, front=front, max_drift=None)))
        shown = re.findall(r"<text[^>]*>([^<]*)</text>", text)
        assert not [each for each in shown if re.search(r"\de[+−-]?\d|10\^|\+\d|×10", each)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((None, "–"), (0.0, "0"), (1e-9, "<0.000001"), (1.234e-6, "0.00000123"), (1e-5, "0.00001")),
        *((1e-4, "0.0001"), (0.01234, "0.0123"), (999.4, "999"), (123456.0, "123,456")),
    ],
)
def test_numbers_have_no_power_of_ten(value: float | None, text: str):
    assert number(value) == text
