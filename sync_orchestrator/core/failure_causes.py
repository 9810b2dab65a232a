"""The cause of a failure: a short text that all records share which failed for the same reason. Pure.

Alerts and lists group records by it. Details of a single record (numbers, quoted values, its key) are left out, so that
a thousand records with the same refusal are one cause; different refusals under the same status stay apart.
"""

from __future__ import annotations

import re

from sync_orchestrator.errors import CallFailed

MAX_OPEN_CAUSES = 20
"""Open alerts of one kind and entity; further causes share one alert, ``OTHER_REFUSALS``."""

OTHER_REFUSALS = "other refusals"

_MAX_LENGTH = 80
_MAX_SCANNED = 2000
"""Characters that the patterns below are given: some of them take time by the square of the length."""
_PLACEHOLDER = "…"
_STATUS = re.compile(r"^(?:(?P<means>[a-z ]+), )?answer (?P<status>\d{3})(?:: ?(?P<text>.*))?$", re.DOTALL)
_QUOTED = re.compile(r'"[^"]*"|`[^`]*`|(?<!\w)\'[^\']*\'(?!\w)|“[^”]*”|„[^“”]*[“”]|‘[^’]*’(?!\w)|«[^»]*»|「[^」]*」')
_NAMES_A_FIELD = re.compile(r"\b(field|column|attribute|property|parameter|path|place)\s*$", re.IGNORECASE)
_WITH_DIGIT = re.compile(r"[^\s,;:()\[\]{}]*\d[^\s,;:()\[\]{}]*")
_REPEATED = re.compile(r"…(?:[\s,]*…)+")
_ERROR_TEXTS = (
    "message",
    "error_description",
    "detail",
    "title",
    "description",
    "reason",
    "msg",
    "error",
    "errors",
    "code",
)
_OWN_PHRASES = (
    "no connection",
    "no answer",
    "an answer that cannot be read",
    "the login failed",
    "asked to stay away",
    "mapping",
)
_STRING = r'\s*:\s*"((?:[^"\\]|\\.)+)"'
_LISTED = re.compile(r'"errors?"\s*:\s*([\[{].*)', re.DOTALL)
_PUNCTUATION = re.compile(r'[\[\]{}"\\]+')


def cause_of(failure: CallFailed, key: str | None = None) -> str:
    """Returns the cause of a failed call; ``key`` is the record's, which is left out of it."""
    reason = (failure.reason or "").strip()
    if reason and reason not in failure.detail:
        return _normalize_line(reason, key) or _of_status(failure.status)
    if failure.status is not None and _STATUS.match(failure.detail) is None:
        return f"{_of_status(failure.status)}: {_normalize_line(failure.detail, key)}"[:_MAX_LENGTH].rstrip(": ")
    return cause_of_error(failure.detail, key)


def cause_of_error(error: str | None, key: str | None = None) -> str:
    """Returns the cause that the text of an error stands for, as it is stored with records and events."""
    text = " ".join((error or "")[:_MAX_SCANNED].split())
    if (found := _STATUS.match(text)) is None:
        return _normalize_line(text, key) or "no error text"
    plain = _of_status(found["status"])
    said = found["text"] or ""
    if said.startswith("an HTML page"):
        return plain
    if said.startswith(("{", "[")):
        said = _error_text(said)
    elif found["means"]:
        return _normalize_line(said, key) or plain
    return f"{plain}: {said}"[:_MAX_LENGTH] if (said := _normalize_line(said, key)) else plain


def error_class(error: str | None) -> str | None:
    """The kind of an error without a word of others, for readers who may not see its text; None where there is none.

    It is ``answer <status>``, one of our own phrases such as ``no connection``, or ``other``.
    """
    if error is None:
        return None
    text = error[:_MAX_SCANNED]
    if (found := _STATUS.match(text)) is not None:
        return _of_status(found["status"])
    return next((phrase for phrase in _OWN_PHRASES if text.startswith(phrase)), "other")


def _of_status(status: int | str | None) -> str:
    return f"answer {status}" if status is not None else "refused"


def _error_text(document: str) -> str:
    """The text of an error in a JSON document, which may be cut off; empty where no usual place has one."""
    for name in _ERROR_TEXTS:
        if found := re.search(rf'"{name}"{_STRING}', document):
            return re.sub(r'\\(["\\/])', r"\1", found[1])
    if listed := _LISTED.search(document):
        return " ".join(_PUNCTUATION.sub(" ", listed[1]).split()).replace(" :", ":").replace(" ,", ",")
    return ""


def _normalize_line(text: str, key: str | None) -> str:
    """One line without what belongs to a single record."""
    text = " ".join(text[:_MAX_SCANNED].split())
    if key:
        text = re.sub(rf"(?<!\w){re.escape(key)}(?!\w)", _PLACEHOLDER, text)
    text = _QUOTED.sub(_without_value, text)
    text = _WITH_DIGIT.sub(_PLACEHOLDER, text)
    text = _REPEATED.sub(_PLACEHOLDER, text)[:_MAX_LENGTH].strip(" .:,;")
    return text if text.strip(_PLACEHOLDER) else ""


def _without_value(quoted: re.Match[str]) -> str:
    """A quoted text is a value of the record, unless the word before it says that it names a field."""
    names_a_field = _NAMES_A_FIELD.search(quoted.string[: quoted.start()]) and not re.search(r"\d", quoted[0])
    return quoted[0] if names_a_field else _PLACEHOLDER
