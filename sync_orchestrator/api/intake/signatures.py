"""Requests that a source system signed (Standard Webhooks 1.0): who signed, and what of a request the signature covers.

The signature covers ``webhook-id``, ``webhook-timestamp`` and the body as it was sent. So nothing else of a signed
request decides what is recorded: no other header, and of the path only what the configuration says anyway.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from sync_orchestrator.api.problems import Refused
from sync_orchestrator.config import Config
from sync_orchestrator.config.signed_headers import SIGNED_HEADERS
from sync_orchestrator.config.types import webhook_key
from sync_orchestrator.core.service.api_keys import Caller

SIGNATURE = "webhook-signature"
ID, TIMESTAMP = SIGNED_HEADERS

_TOLERANCE_SECONDS = 300
_IDENT = re.compile(r"[\x21-\x7e]{1,190}")
_SECONDS = re.compile(r"[1-9][0-9]{0,11}")
"""One spelling of each time: another one would have the same signature, and show an expression another value."""
_DIGEST = re.compile(r"v1,([A-Za-z0-9+/]{43}=)")
_MAX_SIGNATURES = 20


@dataclass(frozen=True, slots=True)
class SignatureClaim:
    """What a request says of its signature: well formed and in time, but not compared with a body."""

    ident: str
    timestamp: str
    digests: tuple[bytes, ...]
    secrets: Mapping[str, list[bytes]]

    def verify_signer(self, body: bytes) -> Caller:
        """The source system that signed the body, as it was sent. Raises Refused (401)."""
        prefix = f"{self.ident}.{self.timestamp}.".encode()
        sources = [
            name
            for name, secrets in self.secrets.items()
            if any(self._is_by(secret, prefix, body) for secret in secrets)
        ]
        if not sources:
            raise make_refusal()
        return Caller(f"the signature of {sources[0]}", frozenset(f"events:{name}" for name in sources))

    def list_signed_headers(self) -> dict[str, str]:
        """The headers that are signed."""
        return {ID: self.ident, TIMESTAMP: self.timestamp}

    def _is_by(self, secret: bytes, prefix: bytes, body: bytes) -> bool:
        code = hmac.new(secret, prefix, hashlib.sha256)
        code.update(body)
        made = code.digest()
        return any(hmac.compare_digest(made, digest) for digest in self.digests)


class Signatures:
    """The secrets of the source systems, by the path at which each is good.

    A source system with ``events`` of its own signs for its own path, the others for that of CloudEvents: so the path,
    which is not signed, cannot give a body another meaning.
    """

    def __init__(self, config: Config) -> None:
        self._common: dict[str, list[bytes]] = {}
        self._own: dict[str, list[bytes]] = {}
        for name, source in config.sources.items():
            if source.webhook_secrets:
                place = self._common if source.events is None else self._own
                place[name] = [webhook_key(str(secret)) for secret in source.webhook_secrets]

    def read_claim(self, headers: Mapping[str, str], source: str | None) -> SignatureClaim | None:
        """Reads what a request says of its signature, before any body is read.

        It may be a request to a source's own path, or to the common one. None where it says nothing, or nobody signs
        there. Raises Refused (401).
        """
        if SIGNATURE not in headers:
            return None
        own = {name: secrets for name, secrets in self._own.items() if name == source}
        secrets = self._common if source is None else own
        if not secrets:
            return None
        ident, timestamp = headers.get(ID, ""), headers.get(TIMESTAMP, "")
        if _IDENT.fullmatch(ident) is None or _SECONDS.fullmatch(timestamp) is None:
            raise make_refusal()
        if abs(time.time() - int(timestamp)) > _TOLERANCE_SECONDS:
            raise make_refusal()
        said = headers[SIGNATURE].split(" ")
        digests = tuple(base64.b64decode(match[1]) for each in said if (match := _DIGEST.fullmatch(each)))
        if not digests or len(said) > _MAX_SIGNATURES:
            raise make_refusal()
        return SignatureClaim(ident, timestamp, digests, secrets)


def make_refusal() -> Refused:
    """The refusal of a signature, the same for all that may be wrong with it."""
    return Refused(
        401,
        "The signature does not fit the body, the time or any secret that is good at this path.",
        {"WWW-Authenticate": "Bearer"},
    )
