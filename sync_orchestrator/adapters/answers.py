"""What an answer means: rules of the configuration first, then what its status says. And what it says of waiting.

Pure: no calls. Not here: making calls (``http.py``).
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jmespath.exceptions import JMESPathError

from sync_orchestrator.config import Outcome
from sync_orchestrator.core import exact_json
from sync_orchestrator.core.errors import CallFailed, Failure
from sync_orchestrator.core.expressions import compiled
from sync_orchestrator.core.truth import NoTruth, condition, says_something

_SHOWN = 300
_LOOKED_AT = 20_000
_HTML = re.compile(r"\s*(<!--.*?-->\s*)*<(!doctype|html|head|title|body|h1|center)\b", re.IGNORECASE | re.DOTALL)
_NOT_TEXT = re.compile(r"<(script|style).*?(</\1>|$)|<!--.*?-->|<[^>]*>", re.IGNORECASE | re.DOTALL)
_MEANS_DONE_OR_ABSENT = ("ok", "created", "missing", "duplicate")
_WAITING = {"auth": Failure.AUTH, "throttled": Failure.THROTTLED, "transient": Failure.TRANSIENT,
            "reference_missing": Failure.REFERENCE}


@dataclass(frozen=True)
class Answer:
    """One answer of a system. ``headers`` by lower-case name; ``content`` as it came; ``url``: what was asked;
    ``began``: the monotonic time at which the call was made, 0 where that is not known."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    url: str = ""
    began: float = 0.0

    @cached_property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")

    @cached_property
    def body(self) -> Any:
        """The JSON in it; None where there is none, or no JSON."""
        try:
            return exact_json.parse(self.content)
        except (ValueError, RecursionError):
            return None

    @cached_property
    def document(self) -> dict[str, Any]:
        """What expressions of the configuration look at."""
        return {"status": self.status, "headers": dict(self.headers), "body": self.body, "text": self.text}


strict_json = exact_json.parse


def failure_of(
    answer: Answer, rules: Sequence[Outcome], *, write: bool, secrets: Sequence[str] = (),
    retry_after: float | None = None,
) -> CallFailed | None:
    """The failure an answer stands for, or None for a good one; the first rule that fits decides."""
    for rule in rules:
        try:
            applies = applies_to(rule.when, answer.document, strictly=rule.means in _MEANS_DONE_OR_ABSENT)
        except NoTruth as error:
            return CallFailed(Failure.TRANSIENT, f"answer {answer.status}: outcomes.when {shown(str(error), secrets)}",
                              status=answer.status, unknown=write)
        if applies:
            reason = found(rule.message, answer.document)
            return _meant(rule.means, answer, reason, write=write, secrets=secrets, retry_after=retry_after)
    return classed(answer, write=write, secrets=secrets, retry_after=retry_after)


def applies_to(when: str, document: Any, *, strictly: bool = False) -> bool:
    """Whether a rule's condition picks an answer.

    A text such as "false" or "0" is what it says, and any other text or number counts as something that is there, such
    as an error's. Raises NoTruth for such a text or number where the rule is taken ``strictly`` (a success or an
    absence is not taken from it), and for its negation.
    """
    try:
        return condition(when).applies(document)
    except NoTruth:
        if strictly:
            raise
    return says_something(condition(when).result(document))


def picks(when: str, document: Any) -> bool:
    """The same where nothing hangs on what cannot be read: it picks nothing."""
    with suppress(NoTruth):
        return applies_to(when, document)
    return False


def found(expression: str | None, document: Any) -> Any:
    """What stands at a place of a document; None also where the expression does not fit it."""
    if expression is None:
        return None
    try:
        return compiled(expression).search(document)
    except JMESPathError:
        return None


def classed(
    answer: Answer, *, write: bool, secrets: Sequence[str] = (), retry_after: float | None = None
) -> CallFailed | None:
    """The failure a status stands for, or None for a good one."""
    status = answer.status
    if 200 <= status < 300:
        return None
    detail = f"answer {status}: {shown(answer.text, secrets)}"
    if 300 <= status < 400:
        where = shown(answer.headers.get("location", "nowhere"), secrets)
        return CallFailed(Failure.PERMANENT, f"answer {status}: redirects to {where}, which is not followed",
                          status=status)
    if status in (401, 403):
        return CallFailed(Failure.AUTH, detail, status=status)
    if status == 429:
        return CallFailed(Failure.THROTTLED, detail, status=status, retry_after=retry_after)
    if status == 408 or status >= 500:
        return CallFailed(Failure.TRANSIENT, detail, status=status, retry_after=retry_after,
                          unknown=write and _may_have_been_done(status, retry_after))
    return CallFailed(Failure.PERMANENT, detail, status=status, duplicate=status == 409,
                      missing=status in (404, 410), conflict=status in (409, 412, 428), too_large=status == 413)


def _meant(
    means: str, answer: Answer, reason: Any, *, write: bool, secrets: Sequence[str], retry_after: float | None
) -> CallFailed | None:
    if means in ("ok", "created"):
        return None
    kind = _WAITING.get(means, Failure.PERMANENT)
    said = reason if isinstance(reason, str) else exact_json.text(reason, spaced=True) if reason else ""
    return CallFailed(
        kind, f"{means.replace('_', ' ')}, answer {answer.status}: {shown(said or answer.text, secrets)}",
        reason=shown(said, secrets) if said else None,
        status=answer.status, retry_after=retry_after if means in _WAITING else None, duplicate=means == "duplicate",
        missing=means == "missing", conflict=means == "conflict", too_large=means == "too_large",
        unknown=means == "transient" and write and _may_have_been_done(answer.status, retry_after),
    )


def _may_have_been_done(status: int, retry_after: float | None) -> bool:
    """Whether a write may have taken effect before its failure that may pass.

    A refusal (4xx) did nothing, nor did a 503 that names a time to come back: without one it may be a gateway's, which
    lost the answer.
    """
    return status == 408 or not (400 <= status < 500 or (status == 503 and retry_after is not None))


def shown(text: str, secrets: Sequence[str] = ()) -> str:
    """What came, on one line, clipped, without the given secrets; of an HTML page its text."""
    masked = _masked(text, secrets)[:_LOOKED_AT]
    if _HTML.match(masked):
        masked = "an HTML page: " + _masked(html.unescape(_NOT_TEXT.sub(" ", masked)), secrets)
    plain = " ".join(masked.split())
    return plain if len(plain) <= _SHOWN else plain[:_SHOWN] + "…"


def _masked(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
