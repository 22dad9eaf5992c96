"""The page of the demo: speed, δ1, what the models see in a few rooms, the search, and the report on the plan."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from jetvit.bench_predictions import digits
from jetvit.cost_model.files.whole_file import refuse_full_disk, write_whole
from jetvit.demo.result import DemoResult
from jetvit.patterns.wording import counted
from jetvit.report.content import ReportContent
from jetvit.report.html import document, report_parts, table

PICTURES = {
    "rooms.png": "Rooms of the test, their depth, and what the original and the plan make of them. Bright is near.",
    "trade_off.png": "δ1 of every path of the search over its latency, on the rooms that it chooses by.",
    "full_blocks.png": "δ1 and latency by the number of sites that keep full attention.",
    "sites.png": "The best path at each step of the search: which attention every site has.",
    "training.png": "The losses of the search's trainings.",
}
"""File → caption, in the order of the page."""

_PERCENTS = (2, 98)  # of a picture's disparities lie between black and white


def demo_page(demo: DemoResult, report: ReportContent, folder: Path) -> str:
    """Return the page as one HTML file.

    Args:
        demo: what was found and measured.
        report: what `explain` says of the plan.
        folder: of the pictures, which the page holds as they are.
    """
    parts = ["<h1>jetvit demo</h1>", *map(_paragraph, _summary(demo)), *_speed(demo), *_quality(demo)]
    boxes = {"rooms.png": "fit"}  # the others hold text, which would be too small on a phone
    parts += [_picture(folder / name, caption, boxes.get(name, "wide")) for name, caption in PICTURES.items()]
    return document("demo", [*parts, "<h2>The plan</h2>", *report_parts(report)])


def draw_rooms(path: Path, images: Tensor, panels: Sequence[tuple[str, Tensor]]) -> None:
    """Write a PNG with a row for each room: the image, then its disparities by several sources.

    Args:
        path: of the file.
        images: [room, 3, height, width] from 0 to 1.
        panels: title and disparities [room, h, w], near is large; scale and shift play no part.
    """
    from matplotlib.figure import Figure

    count = len(images)
    figure = Figure(figsize=(10, 2.6 * count + 0.2), dpi=100, layout="constrained")
    rows = figure.subplots(count, 1 + len(panels), squeeze=False)
    for index, row in enumerate(rows):
        row[0].imshow(images[index].permute(1, 2, 0).numpy())
        for axes, (_, disparities) in zip(row[1:], panels, strict=True):
            disparity = disparities[index].float()
            low, high = torch.quantile(disparity, torch.tensor(_PERCENTS) / 100)
            axes.imshow(disparity.numpy(), cmap="inferno", vmin=float(low), vmax=float(high))
        for axes in row:
            axes.set_axis_off()
    for axes, title in zip(rows[0], ["image", *(title for title, _ in panels)], strict=True):
        axes.set_title(title, fontsize=11)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    with refuse_full_disk(path):
        write_whole(path, data.getvalue())


def _summary(demo: DemoResult) -> Iterator[str]:
    where = demo.result.environment
    yield (
        "A small Vision Transformer that reads the depth of rendered rooms. Most of its attention became linear or "
        "window attention, trained to return what full attention returns. All numbers were measured on "
        f"{where['device']} with {counted(where['threads'], 'thread')}, torch {where['torch']}."
    )


def _speed(demo: DemoResult) -> Iterator[str]:
    rows = [
        (each.name, digits(each.median_ms), f"{digits(each.q25_ms)} – {digits(each.q75_ms)}", digits(each.images_per_s))
        for each in demo.result.columns
    ]
    yield "<h2>Speed</h2>"
    yield table(("model", "latency (ms)", "quartiles (ms)", "images/s"), rows)
    yield from map(_paragraph, demo.result.conclusions())


def _quality(demo: DemoResult) -> Iterator[str]:
    yield "<h2>δ1</h2>"
    yield _paragraph(demo.what_delta1_is())
    yield table(("model", "δ1"), demo.delta1_rows())
    yield _paragraph(f"plan − original: {demo.difference()}")
    yield _paragraph(demo.verdict())


def _picture(file: Path, caption: str, box: str) -> str:
    data = b64encode(file.read_bytes()).decode("ascii")
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(caption)}">'
    return f'<figure>\n<div class="{box}">{image}</div>\n<figcaption>{escape(caption)}</figcaption>\n</figure>'


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"
