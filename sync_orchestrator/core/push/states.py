"""The states of one push: its phases, why a write is sent, and what has been learnt on the way."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from sync_orchestrator.core.ports import Item
from sync_orchestrator.core.push.decision import PushStep, Situation
from sync_orchestrator.errors import CallFailed


class Phase(Enum):
    """What a push does next."""

    START = auto()
    """Begins with the planned step, or ends a push that needs no call."""
    READ_BACK = auto()
    """Reads the record under its id, to see what has become of an older call."""
    LOOK_UP = auto()
    """Searches by our key."""
    CLEAR_OLD_PLACE = auto()
    """Deletes the record of a move at its old place: first, so that only one id has to be remembered."""
    LOOK_BEFORE_UPDATE = auto()
    """Reads what is under the id that is to be written, which may have been given to another record."""
    UPDATE = auto()
    DELETE_HALF = auto()
    """Deletes a part of the record that no update completes."""
    CREATE = auto()
    TAKE_OVER = auto()
    """Searches the record that a create was refused for: somebody else, or an older create of ours, made it."""
    DELETE = auto()
    CLEAN_UP = auto()
    """Deletes what older calls left beside the record; then the push is acknowledged."""


class Aim(Enum):
    """Why a write is sent, and so what follows where there is nothing to write over."""

    FIRST_UPDATE = auto()
    """The planned update: without its id the record is searched or made."""
    SECOND_UPDATE = auto()
    """The update of what was found after the first one has found nothing."""
    TAKE_OVER = auto()
    """The update of what keeps the key of a refused create."""
    REPEATED_CREATE = auto()
    """The update after a create that repeats an older one: its answer may be of the older one's payload."""
    CREATE = auto()
    """A create, of which only a half was made."""


@dataclass(frozen=True, slots=True)
class PushState:
    """Where a push is, and what it has learnt on the way. ``step`` is what the log of attempts calls it."""

    phase: Phase
    step: PushStep
    item: Item
    situation: Situation
    aim: Aim = Aim.FIRST_UPDATE
    is_cleared: bool = False
    """What was acknowledged is not there any more."""
    is_remade: bool = False
    """A half of the record was deleted, so that it has to be made anew."""
    is_create_refused: bool = False
    """A create was definitely not carried out, or is undone: the next one needs another idempotency key."""
    duplicate: CallFailed | None = None
    """The refusal of a create whose key another record has."""
    half: CallFailed | None = None
    """The failure that left a half of the record."""
