"""A webhook that is told of outcomes: CloudEvents by POST, signed as Standard Webhooks 1.0 has it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx
from standardwebhooks import Webhook

from sync_orchestrator import exact_json
from sync_orchestrator.adapters.http.certificates import trusted_certificates
from sync_orchestrator.config import OutcomeReceiverSettings
from sync_orchestrator.core.notifications.outcomes import DELIVERY_SECONDS, Delivery, OutcomeMessage

_MAX_CONCURRENT_CALLS = 8
_MAX_REST_SECONDS = 3600.0
_MAX_SKIPPED_BYTES = 65_536
_OF_THE_MESSAGE = {400, 405, 406, 409, 411, 412, 413, 414, 415, 422}
"""Answers that say something of one message, not of the receiver as a whole."""


def _no_cookies() -> CookieJar:
    """A jar that takes nothing: no cookie goes from one call to the next (rule 27)."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


def _skip_body(answer: httpx.Response) -> None:
    """Reads a short body, so that the connection can be used again; nothing is unpacked, and of a long one no more."""
    size = 0
    for piece in answer.iter_raw():
        size += len(piece)
        if size > _MAX_SKIPPED_BYTES:
            return


class WebhookReceiver:
    """Calls one URL, for several records at once."""

    def __init__(self, settings: OutcomeReceiverSettings) -> None:
        self._settings = settings
        self._webhook = None if settings.secret is None else Webhook(settings.secret)

    def deliver(self, outcomes: Sequence[OutcomeMessage]) -> Delivery:
        """Hands them over; a 2xx is a yes."""
        delivery = Delivery()
        by_record: dict[tuple[str, str], list[OutcomeMessage]] = {}
        for outcome in outcomes:
            by_record.setdefault((outcome.entity, outcome.key), []).append(outcome)
        lock = threading.Lock()
        ends = time.monotonic() + DELIVERY_SECONDS
        with (
            httpx.Client(
                verify=trusted_certificates(),
                timeout=self._settings.timeout,
                follow_redirects=False,
                cookies=_no_cookies(),
            ) as client,
            ThreadPoolExecutor(_MAX_CONCURRENT_CALLS, "webhook") as pool,
        ):
            for _ in pool.map(lambda each: self._one_record(client, each, delivery, lock, ends), by_record.values()):
                pass
        return delivery

    def _one_record(
        self,
        client: httpx.Client,
        outcomes: Sequence[OutcomeMessage],
        delivery: Delivery,
        lock: threading.Lock,
        ends: float,
    ) -> None:
        for outcome in outcomes:
            with lock:
                if delivery.down is not None or time.monotonic() > ends:
                    return
            status, problem, rest = self._post_outcome(client, outcome)
            with lock:
                if problem is None:
                    delivery.taken.append(outcome.id)
                    continue
                if status in _OF_THE_MESSAGE:
                    delivery.refused[outcome.id] = problem
                else:
                    delivery.down, delivery.rest = problem, max(delivery.rest, rest)
                return

    def _post_outcome(self, client: httpx.Client, outcome: OutcomeMessage) -> tuple[int, str | None, float]:
        """Status, what is wrong with it, and for how long we are asked to stay away."""
        body = exact_json.dump_text(outcome.cloud_event(self._settings.source))
        headers = {
            **self._settings.headers,
            "Content-Type": "application/cloudevents+json; charset=utf-8",
            **self._build_signature_headers(outcome, body),
        }
        try:
            with client.stream("POST", self._settings.url, content=body.encode(), headers=headers) as answer:
                _skip_body(answer)
        except Exception as error:  # a receiver may send anything; what it does to a library fails this call alone
            return 0, f"no answer ({type(error).__name__})", 0.0
        if answer.is_success:
            return answer.status_code, None, 0.0
        told = answer.headers.get("Retry-After", "")
        rest = min(_MAX_REST_SECONDS, float(told)) if told.isdecimal() and len(told) < 9 else 0.0
        return answer.status_code, f"answer {answer.status_code}", rest

    def _build_signature_headers(self, outcome: OutcomeMessage, body: str) -> dict[str, str]:
        now = datetime.now(UTC)
        told = {"webhook-id": outcome.event_id, "webhook-timestamp": str(int(now.timestamp()))}
        if self._webhook is None:
            return told
        return {**told, "webhook-signature": self._webhook.sign(outcome.event_id, now, body)}
