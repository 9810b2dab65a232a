"""All that was measured last, in one table: ``python -m bench.summary [TITLE…]``, of these measurements only."""

from __future__ import annotations

import json
import sys

from bench.table import RESULTS, Line, printed


def main() -> None:
    titles = sys.argv[1:] or sorted(path.stem for path in RESULTS.glob("*.json"))
    found = [
        Line(**line)
        for title in titles
        if (RESULTS / f"{title}.json").exists()
        for line in json.loads((RESULTS / f"{title}.json").read_text())["lines"]
    ]
    printed("all of it", found)
    wanted = [line for line in found if line.reached is not None]
    print(f"{sum(1 for line in wanted if line.reached)} of {len(wanted)} figures reached")


if __name__ == "__main__":
    main()
