"""Drift to take away: the whole list as CSV or Parquet, and a plot of it over time as SVG."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable, Iterable
from datetime import timedelta
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from sync_orchestrator import exact_json
from sync_orchestrator.core.validation.drift import DriftKind
from sync_orchestrator.core.validation.drift_log import COLUMNS, OverTime
from sync_orchestrator.errors import ConfigError
from sync_orchestrator.extras import import_from_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROWS_PER_READ = 10_000
_TIMES = ("found_at", "last_seen_at", "repaired_at")
_COLORS = dict(zip(DriftKind, ("#c0392b", "#e67e22", "#8e44ad", "#2980b9", "#16a085", "#7f8c8d"), strict=True))
_SVG = "http://www.w3.org/2000/svg"

Row = dict[str, object]


def write_drift(path: Path, rows: Iterable[Row]) -> int:
    """Writes rows of ``core.drift.COLUMNS`` to a file whose ending says how; returns how many there were.

    Raises ConfigError for another ending, and where Parquet's library is not installed.
    """
    writers: dict[str, Callable[[Path, Iterable[Row]], int]] = {".csv": _write_csv, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise ConfigError(f"{path}: the list is written as .csv or .parquet")
    return writers[path.suffix](path, rows)


def _write_csv(path: Path, rows: Iterable[Row]) -> int:
    number = 0
    with path.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([_format_value(row[name], name) for name in COLUMNS])
            number += 1
    return number


def _write_parquet(path: Path, rows: Iterable[Row]) -> int:
    with import_from_extra("parquet"):
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    schema = arrow.schema(
        [(name, arrow.timestamp("us", "UTC") if name in _TIMES else arrow.string()) for name in COLUMNS]
    )
    number, left = 0, iter(rows)
    with parquet.ParquetWriter(path, schema) as writer:
        while batch := list(islice(left, _ROWS_PER_READ)):
            writer.write_table(
                arrow.table(
                    {
                        name: [row[name] if name in _TIMES else _format_value(row[name], name) for row in batch]
                        for name in COLUMNS
                    },
                    schema,
                )
            )
            number += len(batch)
    return number


def _format_value(value: Any, name: str) -> str | None:
    """A value as the list tells it; what a field holds is JSON, so that 1 and "1" are not the same."""
    if value is None:
        return None
    if name in ("ours", "theirs"):
        return exact_json.dump_text(value, spaced=True)
    return value.isoformat() if name in _TIMES else str(value)


def plot_drift(path: Path, found: OverTime) -> None:
    """Draws how much drift was found in each interval, as stacked bars with one color for each kind.

    The numbers appear when the pointer is over a bar.

    Args:
        path: The file to write; it must end in ``.svg``.
        found: The counts by interval and kind.

    Raises:
        ConfigError: The path has another ending.
        MissingExtra: The library for plots is not installed.
    """
    if path.suffix != ".svg":
        raise ConfigError(f"{path}: the plot is written as .svg")
    with import_from_extra("plots"):
        import matplotlib as mpl
        from matplotlib.figure import Figure
    titles: dict[str, str] = {}
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "drift"}):
        figure = Figure(figsize=(12, 4), layout="constrained")
        axes = figure.subplots()
        axes.set_title(f"Drift found, each {found.width}{'' if found.buckets else ': none'}", loc="left")
        _draw_bars(axes, found, titles)
        drawn = BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    path.write_bytes(_with_titles(drawn.getvalue(), titles))


def _draw_bars(axes: Axes, found: OverTime, titles: dict[str, str]) -> None:
    """Stacks the bars of each kind on those before it, and adds the text of each bar to ``titles``, by its id."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
    from matplotlib.ticker import MaxNLocator

    begins = [float(date2num(at)) for at, _ in found.buckets]  # type: ignore[no-untyped-call]
    base = [0] * len(begins)
    for kind in DriftKind:
        counts = [bucket.get(kind, 0) for _, bucket in found.buckets]
        if not any(counts):
            continue
        width = found.width / timedelta(days=1)  # matplotlib counts time in days
        bars = axes.bar(begins, counts, width, base, align="edge", label=kind, color=_COLORS[kind])
        for number, (bar, (at, _), count) in enumerate(zip(bars, found.buckets, counts, strict=True)):
            if count:
                bar.set_gid(f"{kind}-{number}")
                titles[f"{kind}-{number}"] = f"{at:%Y-%m-%d %H:%M} {kind}: {count}"
        base = [below + count for below, count in zip(base, counts, strict=True)]
    axes.set_ylim(0, max(base, default=0) * 1.05 or 1)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    if titles:
        locator = AutoDateLocator()  # type: ignore[no-untyped-call]
        axes.xaxis_date()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    else:
        axes.set_xticks([])


def _with_titles(svg: bytes, titles: dict[str, str]) -> bytes:
    """Adds a ``title`` to the elements with the given ids: browsers show it when the pointer is over the element."""
    for prefix, name in (("", _SVG), ("xlink", "http://www.w3.org/1999/xlink")):
        ElementTree.register_namespace(prefix, name)
    root = ElementTree.fromstring(svg)
    for element in root.iter(f"{{{_SVG}}}g"):
        if (text := titles.get(element.get("id", ""))) is not None:
            title = ElementTree.Element(f"{{{_SVG}}}title")
            title.text = text
            element.insert(0, title)
    drawn: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return drawn
