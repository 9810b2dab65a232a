"""Responses of a server that is slow or loses requests."""

from __future__ import annotations

from sync_orchestrator.core.systems.call_limit import Limit

FULL = Limit(32.0, is_known=True)


LOST = "no answer within 2 s"
