"""All behaviours of third parties, in the order in which they are tried."""

from __future__ import annotations

from sync_orchestrator.conformance.fixture import Bench
from sync_orchestrator.conformance.report import Behaviours
from sync_orchestrator.conformance.third_party.concurrent_writes import CONCURRENT_WRITES
from sync_orchestrator.conformance.third_party.field_values import FIELD_VALUES
from sync_orchestrator.conformance.third_party.listings import LISTINGS
from sync_orchestrator.conformance.third_party.logins import LOGINS
from sync_orchestrator.conformance.third_party.records import RECORDS

THIRD_PARTY: Behaviours[Bench] = Behaviours()
for _behaviours in (RECORDS, LISTINGS, CONCURRENT_WRITES, LOGINS, FIELD_VALUES):
    THIRD_PARTY.all.extend(_behaviours.all)
