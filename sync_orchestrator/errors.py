"""The errors of the project, as one tree.

SyncError
├── ConfigError        sync.yaml or the environment is wrong; the message names the place and the hint
├── InvalidEvent       a change event that must be refused at the edge
├── MappingFailed      a record that the mapping cannot turn into a payload
├── CallFailed         a call to a source system or the third party that brought no usable answer
├── BrokerDown         a message broker that cannot be worked with now
├── NotFound           a person named something that is not here
├── NotYet             more traffic shall take a new path whose data is not known to be right
├── GroupBusy          another full sync of the same business group holds its lease
├── DeletionsHeld      a full sync would delete more than the cap allows
└── CannotPlan         what a full sync would do cannot be said: something cannot be read
"""

from __future__ import annotations

from enum import StrEnum

from sync_orchestrator.texts.masking import longest_secret, mask
from sync_orchestrator.texts.storable_text import storable_text

MAX_DETAIL_LENGTH = 2000
"""Characters of the text of a failed call that are kept."""


class SyncError(Exception):
    """Base of everything this project raises on purpose. Its message can be stored, and holds no secret of the
    environment."""

    def __init__(self, *messages: object) -> None:
        super().__init__(
            *(storable_text(mask(message)) if isinstance(message, str) else message for message in messages)
        )

    def named(self) -> str:
        """The message; of a failed call, with the system that was called."""
        return str(self)


class ConfigError(SyncError):
    """The configuration cannot be used; the message names the place and the hint."""


class InvalidEvent(SyncError):
    """A change event that cannot be taken; the message says why, ``field`` where."""

    def __init__(self, reason: str, field: str | None = None) -> None:
        super().__init__(reason)
        self.field = field


class MappingFailed(SyncError):
    """A record's parts do not fit the entity's mapping."""


class BrokerDown(SyncError):
    """A message broker does not answer, or does not let us do what we are configured to; later it may."""


class NotFound(SyncError):
    """What a person named does not exist."""


class NotYet(SyncError):
    """Validation does not allow that more traffic takes the new path; the message says what it found."""


class GroupBusy(SyncError):
    """Another full sync of the same business group is under way, or has taken over."""


class DeletionsHeld(SyncError):
    """A full sync would delete more than the cap allows; nothing was deleted."""


class CannotPlan(SyncError):
    """What a full sync would do cannot be said now: a system cannot be read, or a plan cannot be used."""


class Failure(StrEnum):
    """How a call failed, and so whether waiting can fix it."""

    TRANSIENT = "transient"
    THROTTLED = "throttled"
    AUTH = "auth"
    REFERENCE = "reference missing"
    """Something that the record refers to is not there yet: it waits for it as long as it takes."""
    PERMANENT = "permanent"


class CallFailed(SyncError):
    """A call that brought no usable answer.

    ``unknown`` is true where the other side may have carried out the call all the same (no answer, a 5xx).
    ``retry_after`` is in seconds, where the other side named a time. ``duplicate``: what was to be made is there
    already; ``missing``: there is no such record; ``conflict``: it has another revision by now; ``too_large``: less at
    a time would do. ``external_id``: the record was made under this id before the failure.

    ``about_system`` is true where the failure says nothing about the record: no connection, a timeout, a redirect, an
    HTML page where JSON is spoken, a gateway's 502. ``not_ours`` is the key of the record that the third party shows
    under an id that we took for this record's. ``reason`` is the text that a rule of the configuration found for
    operators (``message`` of an outcome), without record-specific detail where possible. ``is_page``: the response was
    HTML or XML where JSON is spoken. ``remake``: what is there is only a part of the record, and no update completes
    it: it has to be deleted and made anew. ``place``: the system that was called, as in the configuration, such as
    ``sources.shop``; None where the adapter is not contained.
    """

    def __init__(
        self,
        kind: Failure,
        detail: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        unknown: bool = False,
        duplicate: bool = False,
        missing: bool = False,
        conflict: bool = False,
        too_large: bool = False,
        external_id: str | None = None,
        about_system: bool = False,
        not_ours: str | None = None,
        reason: str | None = None,
        is_page: bool = False,
        remake: bool = False,
    ) -> None:
        detail = _shortened(detail)
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.status = status
        self.retry_after = retry_after
        self.unknown = unknown
        self.duplicate = duplicate
        self.missing = missing
        self.conflict = conflict
        self.too_large = too_large
        self.external_id = external_id
        self.about_system = about_system
        self.not_ours = not_ours
        self.reason = None if reason is None else _shortened(reason)
        self.is_page = is_page
        self.remake = remake
        self.place: str | None = None

    def named(self) -> str:
        """The message with the name of the system that was called."""
        kind, _, name = (self.place or "").partition(".")
        called = {"sources": "source system", "third_parties": "third party"}.get(kind)
        return str(self) if called is None else f"{called} {name}: {self}"


def _shortened(text: str) -> str:
    """Cut to a length that all further handling is quick for; a secret at the cut is masked whole."""
    return storable_text(mask(text[: MAX_DETAIL_LENGTH + longest_secret()])[:MAX_DETAIL_LENGTH])
