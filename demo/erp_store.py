"""What the ERP holds, and the silent damage that is done to it."""

from __future__ import annotations

import bisect
import random
import secrets
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Record = dict[str, Any]

BY_HAND = "HAND-"
"""How the item codes of records begin that people made in the ERP itself."""


class Damage(BaseModel):
    """So many records to lose, to alter, and to bring back of those deleted; the same choice for the same seed."""

    model_config = ConfigDict(extra="forbid")

    lose: int = Field(default=0, ge=0)
    alter: int = Field(default=0, ge=0)
    revive: int = Field(default=0, ge=0)
    seed: int = 7


class NoSuchRecord(Exception):
    """There is no record under the id given."""


class TooFew(Exception):
    """More damage was asked for than there are records to damage; nothing was done."""


class Store:
    """The ERP's records by their id, ``ref``. Item codes need not be unique."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self._deleted: dict[str, Record] = {}
        self._of_code: dict[str, set[str]] = {}
        self._of_warehouse: dict[str, list[str]] = {}

    def create(self, item: Record) -> Record:
        """Keeps a new record under a new id, whether or not there is one with its item code."""
        return self._put(f"ITM-{secrets.token_hex(8)}", item)

    def read(self, ref: str) -> Record:
        """A record. Raises NoSuchRecord."""
        if ref not in self.records:
            raise NoSuchRecord(f"there is no item {ref}")
        return self.records[ref]

    def update(self, ref: str, item: Record) -> Record:
        """Overwrites a record. Raises NoSuchRecord."""
        self._take(ref)
        return self._put(ref, item)

    def delete(self, ref: str) -> None:
        """Removes a record, and remembers it for ``damage``. Raises NoSuchRecord."""
        record = self._take(ref)
        self._deleted[record["itemCode"]] = record

    def refs_of_code(self, code: str) -> list[str]:
        """The ids of all records with an item code, sorted."""
        return sorted(self._of_code.get(code, ()))

    def refs_of_warehouse(self, warehouse: str) -> list[str]:
        """The ids of all records in a warehouse, sorted."""
        return self._of_warehouse.get(warehouse, [])

    def restore(self, records: list[Record]) -> None:
        """Takes the place of everything here."""
        self.records, self._of_code, self._of_warehouse = {}, {}, {}
        for record in records:
            self._put(record["ref"], record)

    def duplicates(self) -> list[str]:
        """The item codes that more than one record has."""
        return sorted(code for code, refs in self._of_code.items() if len(refs) > 1)

    def make_by_hand(self, warehouse: str, number: int) -> list[Record]:
        """Makes records that no source system has."""
        known = sum(code.startswith(BY_HAND) for code in self._of_code)
        return [
            self.create(
                {
                    "itemCode": f"{BY_HAND}{serial:04}",
                    "warehouse": warehouse,
                    "title": "display piece",
                    "unitPrice": 100 * serial,
                }
            )
            for serial in range(known + 1, known + 1 + number)
        ]

    def damage(self, order: Damage) -> list[dict[str, str]]:
        """Spoils records without a trace in the API, and tells what was done: key, kind of drift, warehouse.

        Raises TooFew.
        """
        choice = random.Random(order.seed)
        mirrored = sorted(
            (record["itemCode"], ref)
            for ref, record in self.records.items()
            if not record["itemCode"].startswith(BY_HAND)
        )
        gone = sorted(code for code in self._deleted if not self._of_code.get(code))
        if order.lose + order.alter > len(mirrored) or order.revive > len(gone):
            raise TooFew(f"there are {len(mirrored)} records to lose or alter, and {len(gone)} to bring back")
        picked = [ref for _, ref in choice.sample(mirrored, order.lose + order.alter)]
        back = [self._deleted.pop(code) for code in choice.sample(gone, order.revive)]
        done = [_done(self._take(ref), "missing") for ref in picked[: order.lose]]
        done += [_done(self._altered(ref, choice), "different") for ref in picked[order.lose :]]
        done += [_done(self.create(record), "extra") for record in back]
        return done

    def _altered(self, ref: str, choice: random.Random) -> Record:
        record = self.records[ref]
        if choice.random() < 0.5:
            record["title"] = f"{record.get('title')} (altered)"
        else:
            record["unitPrice"] = (record.get("unitPrice") or 0) + 1
        return record

    def _put(self, ref: str, item: Record) -> Record:
        record = {**item, "ref": ref, "touchedAt": datetime.now(UTC).isoformat()}
        self.records[ref] = record
        self._of_code.setdefault(record["itemCode"], set()).add(ref)
        bisect.insort(self._of_warehouse.setdefault(record["warehouse"], []), ref)
        return record

    def _take(self, ref: str) -> Record:
        record = self.read(ref)
        del self.records[ref]
        self._of_code[record["itemCode"]].discard(ref)
        refs = self._of_warehouse[record["warehouse"]]
        del refs[bisect.bisect_left(refs, ref)]
        return record


def _done(record: Record, kind: str) -> dict[str, str]:
    return {"key": record["itemCode"], "kind": kind, "warehouse": record["warehouse"]}
