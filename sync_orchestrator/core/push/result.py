"""The end of a push, as it is handed to the settlement."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sync_orchestrator.core.push.calls import CallsMade
from sync_orchestrator.core.push.claims import PushClaim
from sync_orchestrator.core.push.decision import PushStep
from sync_orchestrator.errors import CallFailed


@dataclass(frozen=True, slots=True)
class Pushed:
    """How a push ended.

    ``failure`` None: acknowledged (``digest`` None: the record is not there any more). ``postponed``: seconds to wait,
    at no cost. ``calls``: what was called and sent. ``cleared``: what was acknowledged is not there any more, such as
    the old place of a move. ``look_again``: in how many seconds a search would show all that an older call left at
    other places (0: it was all seen).

    ``outcome_unknown``: what is there cannot be known until the in-flight window has passed; ``settled``: that window
    has passed, and nothing is there. ``refused``: a create was definitely not carried out, so that the next one needs
    a new idempotency key.
    """

    claim: PushClaim
    step: PushStep
    calls: CallsMade = field(default_factory=CallsMade)
    digest: bytes | None = None
    external_id: str | None = None
    failure: CallFailed | None = None
    rejected_digest: bytes | None = None
    postponed: float | None = None
    held: bool = False
    cleared: bool = False
    look_again: float = 0.0
    outcome_unknown: bool = False
    settled: bool = False
    refused: bool = False
    recheck: Literal["changed", "gone"] | None = None
    """Of a two-way record, nothing was written: the other side's record was changed, or is gone, and is read again."""
    recheck_id: str | None = None
    """The id of a record that a search has found, which is linked before it is written."""
