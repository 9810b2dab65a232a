"""Decides which due records of one third party are claimed next, and claims them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sync_orchestrator.core.push.claims import FIRST_PLACE, PushClaim, claim_due_records, claim_in_turn, next_due
from sync_orchestrator.core.systems.breaker import check_gate
from sync_orchestrator.core.systems.pauses import list_paused_entities

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sync_orchestrator.config import ThirdPartySettings
    from sync_orchestrator.core.context import Context


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """Claimed records, and in how many seconds to look again; None where no due time is known."""

    claims: Sequence[PushClaim] = ()
    seconds_until_due: float | None = None


class RecordClaimer:
    """Claims due records of one third party, or of one business group of an entity that it has.

    Where more is due than one claim takes, every second claim takes records of all groups in turn, so that no group
    starves.
    """

    def __init__(
        self, context: Context, name: str, system: ThirdPartySettings, group: tuple[str, str] | None = None
    ) -> None:
        self._context = context
        self._name = name
        self._system = system
        self._entity = None if group is None else group[0]
        self._group = None if group is None else group[1]
        self._takes_turns = False  # the last claim left some of what is due
        self._turn = FIRST_PLACE

    def claim_records(self, connection: Connection, most: int, *, is_busy: bool) -> ClaimResult:
        """Claims up to ``most`` due records; the caller commits before it pushes any.

        Args:
            connection: The caller's transaction.
            most: The largest number of records.
            is_busy: Whether pushes are under way already. A probe, which a breaker allows, is a push of its own.
        """
        state = check_gate(connection, self._name, self._system)
        paused = list_paused_entities(connection)
        entities = [
            entity.name
            for entity in self._context.of_system(self._name)
            if entity.name not in paused and (self._entity is None or entity.name == self._entity)
        ]
        if state.wait is not None:
            return ClaimResult(seconds_until_due=state.wait)
        if not entities or (state.probe and is_busy):
            return ClaimResult()
        if claims := self._claim_records(connection, entities, most, probe=state.probe):
            return ClaimResult(claims, 0.0)
        return ClaimResult(seconds_until_due=next_due(connection, entities, self._group))

    def _claim_records(
        self, connection: Connection, entities: Sequence[str], most: int, *, probe: bool
    ) -> list[PushClaim]:
        lease, in_flight_window = self._context.config.limits.lease, self._system.in_flight_seconds
        hold, timeout = self._context.holder.hold, self._system.timeout
        if self._takes_turns and self._group is None and not probe:
            self._takes_turns = False
            claims, self._turn = claim_in_turn(
                connection,
                entities,
                self._turn,
                most=most,
                lease=lease,
                in_flight_window=in_flight_window,
                hold=hold,
                timeout=timeout,
            )
            return claims
        claims = claim_due_records(
            connection,
            entities,
            most=most,
            lease=lease,
            in_flight_window=in_flight_window,
            group=self._group,
            probe=probe,
            hold=hold,
            timeout=timeout,
        )
        self._takes_turns = len(claims) >= most
        return claims
