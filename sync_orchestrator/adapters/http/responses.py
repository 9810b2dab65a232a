"""What an answer means: rules of the configuration first, then what its status says. And what it says of waiting.

Pure: no calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from jmespath.exceptions import JMESPathError

from sync_orchestrator import exact_json
from sync_orchestrator.config import OutcomeRule
from sync_orchestrator.errors import CallFailed, Failure, Refusal
from sync_orchestrator.expressions.selectors import compile_selector
from sync_orchestrator.expressions.truth import NoTruth, parse_condition, says_something
from sync_orchestrator.texts import html_pages
from sync_orchestrator.texts.masking import longest_secret, mask_secrets

_SHOWN = 300
MAX_TEXT_BYTES = 1_048_576
"""Bytes of a response that expressions see as ``text``."""

MAX_SCANNED = 20_000
"""Characters (or bytes) of a text of others that are looked at for a message."""
_MEANS_DONE_OR_ABSENT = ("ok", "created", "missing", "duplicate")
_OF_GATEWAYS = (402, 407, 408, 421, 425, 502, 503, 504, 511, *range(520, 531))
_NO_SUCH_ADDRESS = (404, 405, 410)
_WAITING = {
    "auth": Failure.AUTH,
    "throttled": Failure.THROTTLED,
    "transient": Failure.TRANSIENT,
    "reference_missing": Failure.REFERENCE,
    "remake": Failure.TRANSIENT,
}
_REFUSALS_BY_MEANING = {
    "duplicate": Refusal.DUPLICATE,
    "missing": Refusal.MISSING,
    "conflict": Refusal.CONFLICT,
    "too_large": Refusal.TOO_LARGE,
    "remake": Refusal.HALF_WRITTEN,
}
_REFUSALS_BY_STATUS = {
    404: Refusal.MISSING,
    409: Refusal.DUPLICATE_OR_CONFLICT,
    410: Refusal.MISSING,
    412: Refusal.CONFLICT,
    413: Refusal.TOO_LARGE,
    428: Refusal.CONFLICT,
}

About = Literal["record", "collection", "unknown"]
"""What a call addresses: one record, all of them (a create, a listing, a search, a count), or nobody here knows."""


@dataclass(frozen=True)
class Answer:
    """One answer of a system. ``headers`` by lower-case name; ``content`` as it came; ``url``: what was asked.

    ``began`` is the monotonic time at which the call was made, 0 where that is not known. ``status_is_known`` is false
    for an item of an answer whose own status cannot be read.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes
    url: str = ""
    began: float = 0.0
    status_is_known: bool = True

    @cached_property
    def text(self) -> str:
        """The text, up to ``MAX_TEXT_BYTES``."""
        return self.content[:MAX_TEXT_BYTES].decode("utf-8", "replace")

    @property
    def start(self) -> str:
        """The first characters of the text, for messages and for what kind of document it is."""
        return self.content[:MAX_SCANNED].decode("utf-8", "replace")

    @cached_property
    def body(self) -> Any:
        """The JSON in it; None where there is none, or no JSON."""
        try:
            return exact_json.parse(self.content)
        except (ValueError, RecursionError):
            return None

    @cached_property
    def document(self) -> dict[str, object]:
        """What expressions of the configuration look at."""
        status = self.status if self.status_is_known else None
        return {"status": status, "headers": dict(self.headers), "body": self.body, "text": self.text}

    @cached_property
    def is_html(self) -> bool:
        """Whether it is a page for people. JSON that is sent as ``text/html`` is JSON."""
        if self.body is not None or not self.content.strip():
            return False
        return "html" in self.headers.get("content-type", "").lower() or html_pages.is_html_page(self.start)

    @cached_property
    def is_markup(self) -> bool:
        """Whether it is HTML or XML, which an API that speaks JSON does not send itself."""
        if self.is_html:
            return True
        if self.body is not None or not self.content.strip():
            return False
        is_xml = "xml" in self.headers.get("content-type", "").lower()
        return is_xml or self.start.lstrip("\ufeff \t\r\n").startswith("<")


strict_json = exact_json.parse


def failure_of(
    answer: Answer,
    rules: Sequence[OutcomeRule],
    *,
    write: bool,
    about: About = "record",
    secrets: Sequence[str] = (),
    retry_after: float | None = None,
) -> CallFailed | None:
    """The failure an answer stands for, or None for a good one; the first rule that fits decides."""
    try:
        rule = rule_for(answer, rules)
    except NoTruth as error:
        return CallFailed(
            Failure.TRANSIENT,
            f"answer {answer.status}: outcomes.when {sanitize_text(str(error), secrets)}",
            status=answer.status,
            unknown=write,
        )
    if rule is not None:
        reason = find_value(rule.message, answer.document)
        return _classify_by_meaning(rule.means, answer, reason, write=write, secrets=secrets, retry_after=retry_after)
    return classify_by_status(answer, write=write, about=about, secrets=secrets, retry_after=retry_after)


def rule_for(answer: Answer, rules: Sequence[OutcomeRule]) -> OutcomeRule | None:
    """The first rule of the configuration that fits an answer.

    Raises NoTruth where a rule for a success or an absence depends on a value that is no truth value.
    """
    return next(
        (
            rule
            for rule in rules
            if applies_to(rule.when, answer.document, strictly=rule.means in _MEANS_DONE_OR_ABSENT)
        ),
        None,
    )


def applies_to(when: str, document: object, *, strictly: bool = False) -> bool:
    """Whether a rule's condition picks an answer.

    A text such as "false" or "0" is what it says, and any other text or number counts as something that is there, such
    as an error's. Raises NoTruth for such a text or number where the rule is taken ``strictly`` (a success or an
    absence is not taken from it), and for its negation.
    """
    try:
        return parse_condition(when).applies(document)
    except NoTruth:
        if strictly:
            raise
    return says_something(parse_condition(when).evaluate_on(document))


def condition_picks(when: str, document: object) -> bool:
    """The same where nothing hangs on what cannot be read: it picks nothing."""
    with suppress(NoTruth):
        return applies_to(when, document)
    return False


def find_value(expression: str | None, document: object) -> Any:
    """What stands at a place of a document; None also where the expression does not fit it."""
    if expression is None:
        return None
    try:
        return compile_selector(expression).search(document)
    except JMESPathError:
        return None


def classify_by_status(
    answer: Answer,
    *,
    write: bool,
    about: About = "record",
    secrets: Sequence[str] = (),
    retry_after: float | None = None,
) -> CallFailed | None:
    """The failure that a response stands for by its status and the kind of its body, or None for a good one.

    A redirect, a page where JSON is spoken, a gateway's status and a 404 of the collection itself say nothing about the
    record: they are states of the system. Only 429 and a 4xx that is about the record say that nothing was done.
    """
    status = answer.status
    if 200 <= status < 300:
        return None
    detail = f"answer {status}: {sanitize_text(answer.text, secrets)}"
    if not 200 <= status < 600:  # no status of HTTP that could end a call, so it says nothing
        return CallFailed(Failure.TRANSIENT, detail, status=status, unknown=write, about_system=True)
    if 300 <= status < 400:
        where = sanitize_text(answer.headers.get("location", "nowhere"), secrets)
        return CallFailed(
            Failure.TRANSIENT,
            f"answer {status}: redirects to {where}, which is not followed",
            status=status,
            unknown=write,
            about_system=True,
        )
    is_page = answer.is_html if about == "unknown" else answer.is_markup
    may_be_done = write and (is_page or _may_have_been_done(status))
    if status in (401, 403):
        return CallFailed(Failure.AUTH, detail, status=status, unknown=may_be_done and status == 403, about_system=True)
    if status == 429:
        return CallFailed(Failure.THROTTLED, detail, status=status, retry_after=retry_after)
    if is_page or status in _OF_GATEWAYS or (about == "collection" and status in _NO_SUCH_ADDRESS):
        return CallFailed(
            Failure.TRANSIENT,
            detail,
            status=status,
            retry_after=retry_after,
            unknown=may_be_done,
            about_system=True,
            is_page=is_page,
        )
    if status >= 500 or status == 423:
        return CallFailed(Failure.TRANSIENT, detail, status=status, retry_after=retry_after, unknown=may_be_done)
    return CallFailed(
        Failure.PERMANENT,
        detail,
        status=status,
        refusal=_REFUSALS_BY_STATUS.get(status),
    )


def _classify_by_meaning(
    means: str, answer: Answer, reason: object, *, write: bool, secrets: Sequence[str], retry_after: float | None
) -> CallFailed | None:
    if means in ("ok", "created"):
        return None
    kind = _WAITING.get(means, Failure.PERMANENT)
    said = reason if isinstance(reason, str) else exact_json.dump_text(reason, spaced=True) if reason else ""
    return CallFailed(
        kind,
        f"{means.replace('_', ' ')}, answer {answer.status}: {sanitize_text(said or answer.text, secrets)}",
        status=answer.status,
        retry_after=retry_after if means in _WAITING else None,
        refusal=_REFUSALS_BY_MEANING.get(means),
        unknown=write and means == "transient" and _may_have_been_done(answer.status),
        about_system=means == "auth",
        reason=sanitize_text(said, secrets) if said else None,
    )


def _may_have_been_done(status: int) -> bool:
    """Whether a write may have taken effect before this failure: only a refusal (4xx) says that it did not.

    A 503 says it neither, with or without a time to come back: a gateway that lost the answer sends it, too. A server
    that gave up waiting (408) may have had the whole call.
    """
    return status == 408 or not 400 <= status < 500


def sanitize_text(text: str, secrets: Sequence[str] = ()) -> str:
    """What came, on one line, clipped, without secrets; of an HTML page its text.

    Args:
        text: What came, of any length: only its start is looked at.
        secrets: Further secrets than those of the environment, as ``texts/masking.py`` finds them.
    """
    # A secret that begins before the cut is masked whole, so that no part of it is left at the end.
    masked = mask_secrets(text[: MAX_SCANNED + longest_secret(secrets)], secrets)[:MAX_SCANNED]
    if html_pages.is_html_page(masked):
        masked = "an HTML page: " + mask_secrets(html_pages.text_of(masked), secrets)
    plain = " ".join(masked.split())
    return plain if len(plain) <= _SHOWN else plain[:_SHOWN] + "…"
