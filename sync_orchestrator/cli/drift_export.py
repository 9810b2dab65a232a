"""Drift to take away: the whole list as CSV or Parquet, and a plot of it over time as SVG.

Not here: what is read from the database (``core/validation/drift_log.py``).
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment

from sync_orchestrator import exact_json
from sync_orchestrator.core.validation.drift import DriftKind
from sync_orchestrator.core.validation.drift_log import COLUMNS, OverTime
from sync_orchestrator.errors import ConfigError

_AT_ONCE = 10_000
_TIMES = ("found_at", "last_seen_at", "repaired_at")
_COLOURS = dict(zip(DriftKind, ("#c0392b", "#e67e22", "#8e44ad", "#2980b9", "#16a085", "#7f8c8d"), strict=True))
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 960, 320, 60, 50, 40

Row = dict[str, Any]


def write(path: Path, rows: Iterable[Row]) -> int:
    """Writes rows of ``core.drift.COLUMNS`` to a file whose ending says how; returns how many there were.

    Raises ConfigError for another ending, and where Parquet's library is not installed.
    """
    writers: dict[str, Callable[[Path, Iterable[Row]], int]] = {".csv": _csv, ".parquet": _parquet}
    if path.suffix not in writers:
        raise ConfigError(f"{path}: the list is written as .csv or .parquet")
    return writers[path.suffix](path, rows)


def _csv(path: Path, rows: Iterable[Row]) -> int:
    number = 0
    with path.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([_text(row[name], name) for name in COLUMNS])
            number += 1
    return number


def _parquet(path: Path, rows: Iterable[Row]) -> int:
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError("Parquet needs pyarrow, which is not installed: pip install pyarrow") from None
    schema = arrow.schema(
        [(name, arrow.timestamp("us", "UTC") if name in _TIMES else arrow.string()) for name in COLUMNS]
    )
    number, left = 0, iter(rows)
    with parquet.ParquetWriter(path, schema) as writer:
        while batch := list(islice(left, _AT_ONCE)):
            writer.write_table(
                arrow.table(
                    {
                        name: [row[name] if name in _TIMES else _text(row[name], name) for row in batch]
                        for name in COLUMNS
                    },
                    schema,
                )
            )
            number += len(batch)
    return number


def _text(value: Any, name: str) -> str | None:
    """A value as the list tells it; what a field holds is JSON, so that 1 and "1" are not the same."""
    if value is None:
        return None
    if name in ("ours", "theirs"):
        return exact_json.text(value, spaced=True)
    return value.isoformat() if name in _TIMES else str(value)


def plot(path: Path, found: OverTime) -> None:
    """Draws how much was found when, by kind, as bars on each other. Raises ConfigError for another file than SVG."""
    if path.suffix != ".svg":
        raise ConfigError(f"{path}: the plot is written as .svg")
    most = max((sum(counts.values()) for _, counts in found.buckets), default=0)
    step = (_WIDTH - _LEFT - 20) / max(1, len(found.buckets))
    per_one = (_HEIGHT - _TOP - _BOTTOM) / max(1, most)
    bars, labels = [], []
    for number, (at, counts) in enumerate(found.buckets):
        base = float(_HEIGHT - _BOTTOM)
        for kind in DriftKind:
            if n := counts.get(kind, 0):
                base -= n * per_one
                bars.append(
                    {
                        "x": _LEFT + number * step,
                        "y": base,
                        "height": n * per_one,
                        "colour": _COLOURS[kind],
                        "title": f"{at:%Y-%m-%d %H:%M} {kind}: {n}",
                    }
                )
        if number % max(1, len(found.buckets) // 8) == 0:
            labels.append({"x": _LEFT + number * step, "text": f"{at:%m-%d %H:%M}"})
    kinds = [kind for kind in DriftKind if any(kind in counts for _, counts in found.buckets)]
    path.write_text(
        _SVG.render(
            bars=bars,
            labels=labels,
            most=most,
            bar=max(1.0, step - 1),
            width=_WIDTH,
            height=_HEIGHT,
            left=_LEFT,
            top=_TOP,
            ground=_HEIGHT - _BOTTOM,
            per=str(found.width),
            legend=[(kind, _COLOURS[kind]) for kind in kinds],
        ),
        encoding="utf-8",
    )


_SVG = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{ width }} {{ height }}" font-family="sans-serif" font-size="12">
<rect width="{{ width }}" height="{{ height }}" fill="white"/>
<text x="{{ left }}" y="20" font-size="14">Drift found, each {{ per }}{{ "" if bars else ": none" }}</text>
{% for kind, colour in legend %}
<rect x="{{ width - 110 * (legend | length - loop.index0) }}" y="10" width="10" height="10" fill="{{ colour }}"/>
<text x="{{ width - 110 * (legend | length - loop.index0) + 15 }}" y="20">{{ kind }}</text>
{% endfor %}
<line x1="{{ left }}" y1="{{ ground }}" x2="{{ width - 20 }}" y2="{{ ground }}" stroke="#888"/>
<text x="{{ left - 8 }}" y="{{ ground }}" text-anchor="end">0</text>
<text x="{{ left - 8 }}" y="{{ top + 5 }}" text-anchor="end">{{ most }}</text>
{% for bar_ in bars %}
<rect x="{{ bar_.x | round(1) }}" y="{{ bar_.y | round(1) }}" width="{{ bar | round(1) }}" \
height="{{ bar_.height | round(1) }}" fill="{{ bar_.colour }}"><title>{{ bar_.title }}</title></rect>
{% endfor %}
{% for label in labels %}
<text x="{{ label.x | round(1) }}" y="{{ ground + 20 }}">{{ label.text }}</text>
{% endfor %}
</svg>
""")
