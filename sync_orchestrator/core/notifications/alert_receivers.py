"""The receivers of alerts: the addresses of the configuration through Apprise, or the log where there are none.

An address holds secrets: it is known by a digest, and named by its number and scheme.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

from sync_orchestrator.errors import MissingExtra
from sync_orchestrator.extras import import_from_extra


@dataclass(frozen=True, slots=True)
class AlertReceiver:
    """One address by its number in ``alerts.urls``; without a URL it is the log."""

    number: int
    url: str | None = field(repr=False)

    @property
    def digest(self) -> str:
        """What the outbox knows it by."""
        return "log" if self.url is None else hashlib.sha256(self.url.encode()).hexdigest()

    def deliver_message(self, title: str, body: str) -> str | None:
        """Hands over a message; returns None, or without any secret why it was not taken.

        The log takes every message: whoever sends them writes them there.
        """
        if self.url is None:
            return None
        name = f"alerts.urls[{self.number}]"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with import_from_extra("alerts"):
                    import apprise
            except MissingExtra as error:
                return f"{name}: {error}"
            logging.getLogger("apprise").setLevel(logging.CRITICAL)  # it logs URLs it cannot use, tokens and all
            sender = apprise.Apprise()
            if not sender.add(self.url):
                return f"{name} is no address that Apprise knows"
            try:
                taken = sender.notify(body=body, title=title, body_format=apprise.NotifyFormat.TEXT)
            except Exception as error:  # Apprise has a hundred plugins; what they raise may name the URL
                return f"{name} ({self._scheme}) failed with {type(error).__name__}"
        return None if taken else f"{name} ({self._scheme}) did not take the message"

    @property
    def _scheme(self) -> str:
        return (self.url or "").partition("://")[0]


def list_receivers(urls: Sequence[str]) -> list[AlertReceiver]:
    """Who is told, each once."""
    return [AlertReceiver(urls.index(url), url) for url in dict.fromkeys(urls)] or [AlertReceiver(0, None)]
