"""What was measured as bars, a panel for each unit, on a scale of powers of ten. Not here: the table (``table.py``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment

_WIDTH, _LEFT, _ROW = 1100, 460, 22
_REACHED, _MISSED, _PLAIN = "#2a9d63", "#d1495b", "#7a8ba3"

_SVG = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{ width }} {{ height }}" font-family="sans-serif" font-size="12">
<rect width="{{ width }}" height="{{ height }}" fill="white"/>
{% for row in rows %}
<text x="{{ left - 8 }}" y="{{ row.y + 14 }}" text-anchor="end">{{ row.what }}</text>
<rect x="{{ left }}" y="{{ row.y + 3 }}" width="{{ row.long | round(1) }}" height="15" fill="{{ row.colour }}"/>
<text x="{{ left + row.long + 6 }}" y="{{ row.y + 14 }}">{{ row.said }}</text>
{% endfor %}
</svg>
""")


def draw(path: Path, lines: Sequence[Any]) -> None:
    """Writes an SVG of ``table.Line``s; green reached what was wanted, red did not."""
    rows: list[dict[str, Any]] = []
    y = 10
    for _, panel in groupby(sorted(lines, key=lambda line: line.unit), lambda line: line.unit):
        shown = list(panel)
        most = max(1.0, *(math.log10(max(1.0, line.value)) for line in shown), 1.0)
        for line in shown:
            colour = _PLAIN if line.reached is None else _REACHED if line.reached else _MISSED
            rows.append(
                {
                    "y": y,
                    "what": line.what[:70],
                    "said": f"{line.value:,.0f} {line.unit}",
                    "colour": colour,
                    "long": (_WIDTH - _LEFT - 120) * math.log10(max(1.0, line.value)) / most,
                }
            )
            y += _ROW
        y += _ROW // 2
    path.write_text(_SVG.render(rows=rows, width=_WIDTH, height=y + 10, left=_LEFT), encoding="utf-8")
