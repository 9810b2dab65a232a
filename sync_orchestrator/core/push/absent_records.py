"""Records that wait since the third party does not have them, where none is created there (``creates: never``)."""

from __future__ import annotations

from sync_orchestrator.errors import CallFailed, Failure

ABSENT = "not at the third party yet: others make the records there (creates: never)"
"""The error of such a record, by which queries tell it from one that waits for what it refers to."""

IS_ABSENT = f"waiting_since IS NOT NULL AND stopped IS NULL AND error = '{ABSENT}'"
"""The condition that a row of records waits so, though nothing is wrong with it."""


def build_absent_failure() -> CallFailed:
    """The end of a push whose record is not there. It is waited for like a reference, and spends no attempt."""
    return CallFailed(Failure.REFERENCE, ABSENT)
