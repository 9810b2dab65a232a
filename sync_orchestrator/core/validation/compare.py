"""Finds the suspects of one business group: records that differ, and how. Pure, on pandas tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pandas as pd

from sync_orchestrator.core.validation.drift import DriftKind
from sync_orchestrator.core.validation.spill import ListedRow
from sync_orchestrator.core.values.places import digest_elsewhere


@dataclass(frozen=True, slots=True)
class Suspect:
    """A record that looks wrong there. ``ours`` and ``theirs`` are digests; ``revision`` 0: unknown here.

    ``belongs_to``: the business group in which it should be, for one that is shown in another. ``known_id``: the id
    under which it was acknowledged, which may be another one than ``external_id``, under which it is shown.
    """

    key: str
    kind: DriftKind
    external_id: str | None
    ours: bytes | None
    theirs: bytes | None
    revision: int = 0
    applied_at: datetime | None = None
    belongs_to: str | None = None
    known_id: str | None = None

    @classmethod
    def from_comparison(cls, row: Any, kind: DriftKind) -> Suspect:
        """Makes one from a row of both sides; the right side is empty for a missing record."""
        is_there = row._merge == "both" if hasattr(row, "_merge") else kind is not DriftKind.MISSING
        return cls(
            key=row.key,
            kind=kind,
            external_id=row.external_id_theirs if is_there else row.external_id,
            ours=_as_bytes(row.applied_digest),
            theirs=_as_bytes(row.digest) if is_there else None,
            revision=int(row.revision),
            applied_at=_none_if_missing(row.applied_at),
            known_id=_none_if_missing(row.external_id),
        )

    @classmethod
    def from_misplaced(cls, row: Any, kind: DriftKind, *, external_id: str | None, theirs: bytes | None) -> Suspect:
        """Makes one from our row of a record that is listed in a group where it does not belong."""
        return cls(
            key=row.key,
            kind=kind,
            external_id=external_id,
            ours=_as_bytes(row.applied_digest),
            theirs=theirs,
            revision=row.revision,
            applied_at=row.applied_at,
            belongs_to=None if row.deleted else row.group_key,
            known_id=row.external_id,
        )


_OUR_COLUMNS = [
    "key",
    "external_id",
    "applied_digest",
    "prior_digest",
    "revision",
    "applied_at",
    "deleted",
    "ever_applied",
    "present",
    "ambiguous",
]
_THEIR_COLUMNS = ["key", "external_id", "digest"]


def find_suspects(ours: Iterable[Any], theirs: Iterable[ListedRow]) -> tuple[list[Suspect], set[str]]:
    """Compares some keys of a group, leaving ambiguous records out of judgement.

    ``ours``: rows of ``queries.SELECT_OURS``; ``theirs``: all that is listed there of the same keys.
    Returns the suspects, and the keys that the third party shows here and the archive does not have in this group.
    """
    mine = pd.DataFrame([tuple(row) for row in ours], columns=_OUR_COLUMNS, dtype=object)
    there = pd.DataFrame(list(theirs), columns=_THEIR_COLUMNS, dtype=object).drop_duplicates(["key", "external_id"])
    keyed = there[there["key"].notna()]
    both = mine.merge(keyed, on="key", how="outer", suffixes=("", "_theirs"), indicator=True)
    judged = both[~both["ambiguous"].astype("boolean").fillna(False).astype(bool)]
    known = judged[judged["_merge"] != "right_only"]
    present = known[known["present"].astype(bool)]
    found = [
        *_find_missing(present),
        *_find_different(present),
        *_find_duplicates(known),
        *_find_extra(known[~known["present"].astype(bool) & (known["_merge"] == "both")]),
    ]
    unknown = set(judged.loc[judged["_merge"] == "right_only", "key"])
    return found, unknown


def find_unmanaged(there: Iterable[ListedRow], keys: set[str]) -> list[Suspect]:
    """The third party's records without a key of ours, or with one of ``keys``, which nobody here knows."""
    return [
        Suspect(key or str(external_id), DriftKind.UNMANAGED, external_id, None, theirs)
        for key, external_id, theirs in there
        if key is None or key in keys
    ]


def find_misplaced(
    there: Iterable[ListedRow], rows: Iterable[Any], *, group_in_address: bool, group_is_known: bool
) -> list[Suspect]:
    """Records with a key of ours in a group where it does not belong (rule 12).

    ``rows``: those of ``queries.SELECT_ELSEWHERE``. With a ``group_in_address`` the same id in two groups is two
    records; otherwise it is one, which is shown late or was never moved. A copy of a live record is a duplicate; that
    of a deleted one is extra. A record that names the group in which it belongs is only listed too widely. So may
    each be where neither the listing nor the record says a group (``group_is_known`` is False).
    """
    ours = {row.key: row for row in rows if not row.ambiguous}
    found = []
    for key, external_id, theirs in there:
        if key is None or (row := ours.get(key)) is None:
            continue
        if row.deleted:
            kind = DriftKind.EXTRA if row.ever_applied else DriftKind.UNMANAGED
        elif group_in_address or external_id != row.external_id:
            kind = DriftKind.DUPLICATE
        elif group_is_known and row.group_key is not None and theirs != _shown_in_its_group(row):
            kind = DriftKind.DIFFERENT
        else:
            continue
        found.append(Suspect.from_misplaced(row, kind, external_id=external_id, theirs=theirs))
    return found


def _shown_in_its_group(row: Any) -> bytes | None:
    """The digest of a record that names the group in which it belongs, when another one is compared."""
    applied = _as_bytes(row.applied_digest)
    return None if applied is None else digest_elsewhere(applied, row.group_key)


def _find_missing(present: pd.DataFrame) -> list[Suspect]:
    return [
        Suspect.from_comparison(row, DriftKind.MISSING)
        for row in present[present["_merge"] == "left_only"].itertuples()
    ]


def _find_different(present: pd.DataFrame) -> list[Suspect]:
    here = present[present["_merge"] == "both"]
    ours_there = here[here["external_id"] == here["external_id_theirs"]]
    replaced = here[~here["key"].isin(ours_there["key"])].drop_duplicates("key")
    wrong = ours_there[ours_there["applied_digest"].map(_as_hex) != ours_there["digest"].map(_as_hex)]
    return [
        Suspect.from_comparison(
            row, DriftKind.STALE if _as_hex(row.prior_digest) == _as_hex(row.digest) else DriftKind.DIFFERENT
        )
        for row in pd.concat([wrong, replaced]).itertuples()
    ]


def _find_duplicates(known: pd.DataFrame) -> list[Suspect]:
    both = known[known["_merge"] == "both"]
    many = both[both.duplicated("key", keep=False)]
    return [
        Suspect.from_comparison(row, DriftKind.DUPLICATE)
        for row in many.itertuples()
        if str(row.external_id) != str(row.external_id_theirs)
    ]


def _find_extra(gone: pd.DataFrame) -> list[Suspect]:
    return [
        Suspect.from_comparison(row, DriftKind.EXTRA if row.ever_applied else DriftKind.UNMANAGED)
        for row in gone.drop_duplicates("key").itertuples()
        if row.deleted
    ]


def leave_extra(suspects: Iterable[Suspect]) -> list[Suspect]:
    """The suspects of a third party where nothing is deleted: what is extra there is unmanaged, and no drift."""
    return [
        replace(suspect, kind=DriftKind.UNMANAGED) if suspect.kind is DriftKind.EXTRA else suspect
        for suspect in suspects
    ]


def _none_if_missing(value: object) -> Any:
    return None if value is None or value is pd.NaT else value


def _as_bytes(value: object) -> bytes | None:
    return bytes(value) if isinstance(value, bytes | memoryview) else None


def _as_hex(value: object) -> str:
    found = _as_bytes(value)
    return "" if found is None else found.hex()
