"""The errors of the project, as one tree.

SyncError
├── ConfigError        sync.yaml or the environment is wrong; the message names the place and the hint
│   └── MissingExtra   a feature is used whose optional dependency is not installed
├── InvalidEvent       a change event that must be refused at the edge
├── MappingFailed      a record that the mapping cannot turn into a payload
├── CallFailed         a call to a source system or the third party that brought no usable answer
├── BrokerDown         a message broker that cannot be worked with now
├── LogDown            a database's log that cannot be read now
│   └── NotPrepared    a source's database lacks what capturing its changes needs
├── LogLost            changes of a database's log are missing for good
├── NotFound           a name of something that is not here
├── UsageError         a command or function was called with arguments that do not go together
├── NotYet             more traffic shall take a new path whose data is not known to be right
├── GroupBusy          another full sync of the same business group holds its lease
├── DeletionsHeld      a full sync would delete more than the cap allows
└── CannotPlan         what a full sync would do cannot be said: something cannot be read
"""

from __future__ import annotations

from enum import StrEnum

from sync_orchestrator.texts.masking import longest_secret, mask_secrets
from sync_orchestrator.texts.storable_text import storable_text

MAX_DETAIL_LENGTH = 2000
"""Characters of the text of a failed call that are kept."""


class SyncError(Exception):
    """Base of everything this project raises on purpose.

    Its message can be stored, and holds no secret of the environment.
    """

    def __init__(self, *messages: object) -> None:
        super().__init__(
            *(storable_text(mask_secrets(message)) if isinstance(message, str) else message for message in messages)
        )

    def describe_with_system(self) -> str:
        """The message; of a failed call, with the system that was called."""
        return str(self)


class ConfigError(SyncError):
    """The configuration cannot be used; the message names the place and the hint."""


class MissingExtra(ConfigError):
    """A feature is used whose optional dependency is not installed; the message names the extra to install."""


class InvalidEvent(SyncError):
    """A change event that cannot be taken; the message says why, ``field`` where."""

    def __init__(self, reason: str, field: str | None = None) -> None:
        super().__init__(reason)
        self.field = field


class MappingFailed(SyncError):
    """A record's parts do not fit the entity's mapping."""


class BrokerDown(SyncError):
    """A message broker does not answer, or does not let us do what we are configured to; later it may."""


class LogDown(SyncError):
    """A source database's log cannot be read now; later it may. Nothing is lost by that."""


class NotPrepared(LogDown):
    """A source's database lacks what capturing its changes needs; each message is a sentence with its hint."""

    @property
    def problems(self) -> list[str]:
        """What is missing, a sentence each."""
        return [str(message) for message in self.args]


class LogLost(SyncError):
    """Changes between the recorded position of a stream and the present are missing for good; the message says why."""


class NotFound(SyncError):
    """What a person named does not exist."""


class UsageError(SyncError):
    """A command or function was called with arguments that do not go together, or without one that it needs."""


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


class Refusal(StrEnum):
    """Why the other side refused a call, where that changes what follows."""

    DUPLICATE = "duplicate"
    """What was to be made is there already."""
    MISSING = "missing"
    """There is no such record."""
    CONFLICT = "conflict"
    """The record has another revision by now."""
    DUPLICATE_OR_CONFLICT = "duplicate or conflict"
    """A plain 409, which stands for either."""
    TOO_LARGE = "too large"
    """The request is too large; a smaller batch is accepted."""
    HALF_WRITTEN = "half written"
    """Only a part of the record is there and no update completes it: it has to be deleted and made anew."""
    CHANGED_SINCE_READ = "changed since read"
    """Somebody else has changed the record since it was read, so nothing was written."""


_DUPLICATES = (Refusal.DUPLICATE, Refusal.DUPLICATE_OR_CONFLICT)
_CONFLICTS = (Refusal.CONFLICT, Refusal.DUPLICATE_OR_CONFLICT)


class CallFailed(SyncError):
    """A call that brought no usable answer.

    ``unknown`` is true where the other side may have carried out the call all the same (no answer, a 5xx).
    ``retry_after`` is in seconds, where the other side named a time. ``refusal`` says why it refused, where that
    changes what follows. ``external_id``: the record was made under this id before the failure.

    ``about_system`` is true where the failure says nothing about the record: no connection, a timeout, a redirect, an
    HTML page where JSON is spoken, a gateway's 502. ``not_ours`` is the key of the record that the third party shows
    under an id that we took for this record's. ``reason`` is the text that a rule of the configuration found for
    operators (``message`` of an outcome), without record-specific detail where possible. ``is_page``: the response was
    HTML or XML where JSON is spoken. ``place``: the system that was called, as in the configuration, such as
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
        refusal: Refusal | None = None,
        external_id: str | None = None,
        about_system: bool = False,
        not_ours: str | None = None,
        reason: str | None = None,
        is_page: bool = False,
    ) -> None:
        detail = _shorten_detail(detail)
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.status = status
        self.retry_after = retry_after
        self.unknown = unknown
        self.refusal = refusal
        self.external_id = external_id
        self.about_system = about_system
        self.not_ours = not_ours
        self.reason = None if reason is None else _shorten_detail(reason)
        self.is_page = is_page
        self.place: str | None = None

    @property
    def may_be_duplicate(self) -> bool:
        """Whether what was to be made may be there already."""
        return self.refusal in _DUPLICATES

    @property
    def may_be_conflict(self) -> bool:
        """Whether the record may have another revision by now."""
        return self.refusal in _CONFLICTS

    def describe_with_system(self) -> str:
        """The message with the name of the system that was called."""
        kind, _, name = (self.place or "").partition(".")
        called = {"sources": "source system", "third_parties": "third party"}.get(kind)
        return str(self) if called is None else f"{called} {name}: {self}"


def _shorten_detail(text: str) -> str:
    """Cut to a length that all further handling is quick for; a secret at the cut is masked whole."""
    return storable_text(mask_secrets(text[: MAX_DETAIL_LENGTH + longest_secret()])[:MAX_DETAIL_LENGTH])
