"""The outbox of alerts and of outcomes: how its rows reach one receiver, at least once.

Rows are written in the transaction that they report on. A sender claims due rows of a receiver under a lease, hands
them over while no transaction is open, and notes how that ended: what the receiver took is never sent again, and what
it did not take is due after a pause that grows with each failure. Nothing is given up, and a receiver that fails keeps
no other from being served.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

from sync_orchestrator.core.db.session import in_transaction

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from sync_orchestrator.core.crash_points import CrashPoint

LEASE_SECONDS = 60.0
"""How long claimed rows are left to their sender; a delivery ends before that."""


class DeliveryResult(Protocol):
    """How a delivery ended."""

    @property
    def taken_count(self) -> int:
        """How many messages the receiver took."""
        ...

    @property
    def failure(self) -> str | None:
        """Why the receiver takes nothing now; None where it goes on."""
        ...


BatchT = TypeVar("BatchT")
ResultT = TypeVar("ResultT", bound=DeliveryResult)


class Outbox(ABC, Generic[BatchT, ResultT]):
    """What is due to one receiver; a batch is what is claimed, handed over and noted together."""

    claimed: ClassVar[CrashPoint]
    delivered: ClassVar[CrashPoint]
    max_hand_over_seconds: ClassVar[float] = math.inf
    """A batch that could not be handed over within this time after its claim began is given back instead."""

    @abstractmethod
    def claim_batch(self, connection: Connection) -> BatchT | None:
        """Leases the next batch for LEASE_SECONDS; returns None where nothing is due."""

    @abstractmethod
    def deliver_batch(self, batch: BatchT) -> ResultT:
        """Hands a batch over, outside of a transaction. Raises nothing for a receiver that fails."""

    @abstractmethod
    def note_result(self, connection: Connection, batch: BatchT, result: ResultT) -> None:
        """Writes down how the delivery ended, and ends the lease."""

    def give_back(self, connection: Connection, batch: BatchT) -> None:
        """Ends the lease of a batch that was not handed over in time, where ``max_hand_over_seconds`` is set."""
        raise NotImplementedError

    @abstractmethod
    def log_failure(self, reason: str) -> None:
        """Logs that the receiver takes nothing now."""

    def send_batches(self, engine: Engine, *, max_batches: int | None = None, max_seconds: float | None = None) -> int:
        """Sends batches until nothing is due, the receiver fails, or a limit is reached.

        Args:
            engine: The database.
            max_batches: The largest number of batches.
            max_seconds: No batch is begun after this time.

        Returns:
            How many messages the receiver took.
        """
        taken = batches = 0
        began = time.monotonic()
        while (max_batches is None or batches < max_batches) and (
            max_seconds is None or time.monotonic() - began < max_seconds
        ):
            claim_began = time.monotonic()
            batch = in_transaction(engine, self.claim_batch)
            if batch is None:
                break
            self.claimed()
            if time.monotonic() - claim_began > self.max_hand_over_seconds:
                in_transaction(engine, partial(self.give_back, batch=batch))
                continue
            result = self.deliver_batch(batch)
            self.delivered()
            in_transaction(engine, partial(self.note_result, batch=batch, result=result))
            batches += 1
            taken += result.taken_count
            if result.failure is not None:
                self.log_failure(result.failure)
                break
        return taken
