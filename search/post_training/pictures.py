"""A finished search as pictures: `draw` reads trace.json and metrics.csv of its folder, and writes four PNG files.

The pictures are 1000 pixels wide and need no display.
"""

from __future__ import annotations

import os
from pathlib import Path

from jetvit.search.post_training.figures import STYLE, save_figure
from jetvit.search.post_training.site_map import sites_figure
from jetvit.search.post_training.trace import read_losses, read_trace
from jetvit.search.post_training.trade_offs import full_blocks_figure, trade_off_figure
from jetvit.search.post_training.training_curves import training_figure


def draw(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> list[Path]:
    """Write sites.png, full_blocks.png, training.png and trade_off.png of a finished search.

    Args:
        folder: of the search.
        out: the folder of the pictures, made if it is not there; by default that of the search.
    Returns:
        the files that were written.
    Raises:
        InputError: the search is not finished, or its trace.json or metrics.csv is damaged.
    """
    from matplotlib import style

    folder = Path(folder)
    out = folder if out is None else Path(out)
    trace, losses = read_trace(folder), read_losses(folder)
    out.mkdir(parents=True, exist_ok=True)
    with style.context(["default", STYLE]):
        figures = {
            "sites": sites_figure(trace),
            "full_blocks": full_blocks_figure(trace),
            "training": training_figure(losses),
            "trade_off": trade_off_figure(trace),
        }
        for name, figure in figures.items():
            save_figure(figure, out / f"{name}.png")
    return [out / f"{name}.png" for name in figures]
