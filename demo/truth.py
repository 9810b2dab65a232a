"""The truth for the report, computed outside the system: what the internal systems say against the ERP's own store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import httpx

from demo.erp_store import BY_HAND
from demo.processes import Systems

FIELDS = ("itemCode", "warehouse", "title", "grade", "carat", "dims", "unitPrice", "currency")


@dataclass
class Truth:
    """What the ERP should hold and does not (or otherwise), by item code."""

    expected: int = 0
    in_sync: int = 0
    wrong: dict[str, str] = field(default_factory=dict)
    duplicates: int = 0
    by_hand: int = 0


def compare(client: httpx.Client, systems: Systems) -> Truth:
    """Asks all four systems past their APIs, the catalogue by a SELECT in its own database."""
    lab, pricing = (_dump(client, systems, name) for name in ("lab", "pricing"))
    catalogue = systems.catalogue.read_rows()
    expected = {key: _item(key, row, lab[key], pricing[key]) for key, row in catalogue.items()}
    truth = Truth(expected=len(expected))
    held: dict[str, list[dict[str, Any]]] = {}
    for record in client.get(f"{systems.url('erp')}/_control/dump").json():
        if record["itemCode"].startswith(BY_HAND):
            truth.by_hand += 1
        else:
            held.setdefault(record["itemCode"], []).append({name: record.get(name) for name in FIELDS})
    for key in sorted(expected.keys() | held.keys()):
        records = held.get(key, [])
        truth.duplicates += max(0, len(records) - 1)
        if key not in expected:
            truth.wrong[key] = "extra"
        elif not records:
            truth.wrong[key] = "missing"
        elif any(record != expected[key] for record in records):
            truth.wrong[key] = "different"
        else:
            truth.in_sync += 1
    return truth


def _dump(client: httpx.Client, systems: Systems, name: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = client.get(f"{systems.url(name)}/_control/dump").json()
    return found


def _item(key: str, stone: dict[str, Any], report: dict[str, Any], price: dict[str, Any]) -> dict[str, Any]:
    return {
        "itemCode": key,
        "warehouse": stone["collection"],
        "title": stone["name"],
        "grade": {name: stone[name] for name in ("cut", "color", "clarity")},
        "carat": report["carat"],
        "dims": [report["x"], report["y"], report["z"]],
        "unitPrice": price["price"],
        "currency": price["currency"],
    }
