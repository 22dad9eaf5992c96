"""Lay pages out in headless Chromium, at the widths of a phone, a tablet and a laptop, and report what does not fit."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from html import escape, unescape
from pathlib import Path

import pytest

WIDTHS = (390, 768, 1280)
_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

# Each page is an iframe: a window of Chromium is never narrower than 500 pixels. Pages forbid scripts, so the script is
# that of the page around them.
_SCRIPT = """
const name = (element) => {
  const words = element.textContent.trim().replace(/\\s+/g, " ").slice(0, 60);
  return `<${element.tagName.toLowerCase()}> ${words}`;
};
const scrolls = (element, top) => {
  for (let each = element; each && each !== top; each = each.parentElement)
    if (["auto", "scroll"].includes(getComputedStyle(each).overflowX)) return true;
  return false;
};
const faults = (frame) => {
  const page = frame.contentDocument, top = page.documentElement, width = frame.clientWidth, found = [];
  for (const details of page.querySelectorAll("details")) details.open = true;
  if (top.scrollWidth > width) found.push(`the page is ${top.scrollWidth} pixels wide`);
  for (const element of page.body.querySelectorAll("*")) {
    const box = element.getBoundingClientRect(), style = getComputedStyle(element);
    if (!box.width || !box.height) continue;
    if ((box.right > width + 1 || box.left < -1) && !scrolls(element.parentElement, page.body)
        && !element.ownerSVGElement) found.push(`beyond the page: ${name(element)}`);
    if (["hidden", "clip"].includes(style.overflowX) && element.scrollWidth > element.clientWidth + 1
        && !(element instanceof frame.contentWindow.SVGElement)) found.push(`clipped: ${name(element)}`);
  }
  for (const picture of page.querySelectorAll("svg")) {
    const outer = picture.getBoundingClientRect(), texts = [...picture.querySelectorAll("text")];
    const boxes = texts.map((text) => text.getBoundingClientRect());
    boxes.forEach((box, at) => {
      if (box.left < outer.left - 1 || box.right > outer.right + 1 || box.top < outer.top - 1
          || box.bottom > outer.bottom + 1) found.push(`outside its picture: ${name(texts[at])}`);
      boxes.slice(at + 1).forEach((other, next) => {
        const across = Math.min(box.right, other.right) - Math.max(box.left, other.left);
        const down = Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top);
        if (across > 2 && down > 4) found.push(`on each other: ${name(texts[at])} and ${name(texts[at + 1 + next])}`);
      });
    });
  }
  for (const picture of page.querySelectorAll("img"))
    if (!picture.naturalWidth) found.push(`not shown: the picture ${picture.alt}`);
  return found;
};
addEventListener("load", () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) found[frame.title] = faults(frame);
  document.body.innerHTML = `<pre>${JSON.stringify(found).replace(/&/g, "&amp;").replace(/</g, "&lt;")}</pre>`;
});
"""


def chromium() -> str:
    """Return the path of Chromium or Chrome, and skip the test where there is none."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"lays out pages in a browser, and there is none of {', '.join(_NAMES)}")
    return found


def layout_faults(pages: Mapping[str, str], folder: Path, widths: Sequence[int] = WIDTHS) -> dict[str, list[str]]:
    """Return what does not fit in each page, by "name at width", in one start of the browser.

    A fault is a page that scrolls sideways as a whole, an element that is beyond the page or clipped, a text of an SVG
    picture that is outside of it or on another text, and an image that is not shown. Closed parts are opened first.

    Args:
        pages: name → HTML.
        folder: an empty folder for the page around them and the profile of the browser.
        widths: of the pages, in pixels.
    """
    frames = "".join(
        f'<iframe title="{escape(name)} at {width}" width="{width}" height="800" style="border: 0" '
        f'srcdoc="{escape(text)}"></iframe>'
        for name, text in pages.items()
        for width in widths
    )
    wrapper = folder / "pages.html"
    wrapper.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><body>{frames}<script>{_SCRIPT}</script></body>', encoding="utf-8"
    )
    command = [chromium(), *_OPTIONS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True)
    return json.loads(unescape(done.stdout.partition("<pre>")[2].partition("</pre>")[0]))
