"""Where to look when a call failed: settings by name, with their present value where they are set already. Pure.

Used by ``check --live`` and ``conformance``, so that both say the same of one failure.
"""

from __future__ import annotations

import re
from typing import Any

from sync_orchestrator.errors import CallFailed, Failure

_READABLE_RESPONSE = re.compile(r"\bno (list|number) (at|in) ")
"""In a failure whose response could be read: the system runs, and is at its address."""


def hint_for(failure: CallFailed, place: str, system: Any, *, about_one_record: bool = False) -> str:
    """Returns what to do about a failed call of the system at ``place``; empty where only its own settings matter.

    Args:
        failure: What came of the call.
        place: Where the settings of the system are.
        system: The settings of the system, such as a ``RestSourceSettings``.
        about_one_record: Whether the call reads or changes a single record by its id or key.
    """
    match failure.kind:
        case Failure.AUTH:
            return f"see {_name_credentials(place, system)}, and the secrets that they take from the environment" + (
                "; if this is the response for a record that does not exist, add a rule to 'outcomes' of the call that "
                "means missing"
                if about_one_record and failure.status == 403
                else ""
            )
        case Failure.THROTTLED:
            rate = getattr(system, "rate", None)
            return "it asks for patience: try again later" + (
                f", or lower {place}.rate, which is {rate:g} calls a second"
                if rate is not None
                else f", or set {place}.rate"
                if place.startswith("third_parties.")
                else ""
            )
        case Failure.REFERENCE:
            return "see 'references'"
        case Failure.TRANSIENT if failure.detail.startswith("no answer within"):
            return f"see that it runs, or raise {place}.timeout, which is {system.timeout:g} s"
        case Failure.TRANSIENT if _READABLE_RESPONSE.search(failure.detail):
            return ""
        case Failure.TRANSIENT if failure.status is None or failure.status >= 500:
            return "see that it runs" + (" and that 'base_url' is right" if getattr(system, "base_url", "") else "")
    return ""


def _name_credentials(place: str, system: object) -> str:
    """The settings that prove who we are: those that are set, or else both that could be."""
    named = [name for name in ("auth", "headers", "settings") if getattr(system, name, None)]
    if not named:
        return f"'auth' and 'headers' of {place}, neither of which is set"
    return " and ".join(f"'{name}'" for name in named) + f" of {place}"
