"""Plots of what was measured: one panel for each unit, bars on a logarithmic scale. The table is in ``table.py``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bench.table import Line

_REACHED, _MISSED, _PLAIN = "#2a9d63", "#d1495b", "#7a8ba3"
_WIDTH_INCHES, _BAR_INCHES, _PANEL_INCHES = 12.0, 0.28, 0.45
_MAX_LABEL_CHARACTERS = 70


def draw(path: Path, lines: Sequence[Line]) -> None:
    """Writes an SVG of measured lines: a green bar reached its goal, a red one did not, a gray one has none.

    Args:
        path: The file to write.
        lines: What was measured. A value of 1 or less has no visible bar.
    """
    panels = [list(panel) for _, panel in groupby(sorted(lines, key=lambda line: line.unit), lambda line: line.unit)]
    heights = [_PANEL_INCHES + _BAR_INCHES * len(panel) for panel in panels]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem, "font.size": 9}):
        figure = Figure(figsize=(_WIDTH_INCHES, sum(heights) or _PANEL_INCHES), layout="constrained")
        if panels:
            rows = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
            for axes, panel in zip(rows, panels, strict=True):
                _draw_panel(axes, panel)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw_panel(axes: Axes, panel: Sequence[Line]) -> None:
    values = [max(1.0, line.value) for line in panel]
    colors = [_PLAIN if line.reached is None else _REACHED if line.reached else _MISSED for line in panel]
    bars = axes.barh(range(len(panel)), values, color=colors)
    axes.bar_label(bars, [f"{line.value:,.0f} {line.unit}" for line in panel], padding=4)
    axes.set_yticks(range(len(panel)), [line.what[:_MAX_LABEL_CHARACTERS] for line in panel])
    axes.invert_yaxis()  # the first line at the top
    axes.set_xscale("log")
    axes.set_xlim(1, max(10.0, *values) ** 1.15)  # room for the numbers beside the bars
    axes.set_xlabel(panel[0].unit)
    axes.spines[["top", "right"]].set_visible(False)
