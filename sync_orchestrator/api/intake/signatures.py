"""Requests that a source system signed: by which scheme, who signed, and what of a request the signature covers.

By Standard Webhooks 1.0 a signature covers ``webhook-id``, ``webhook-timestamp`` and the body as it was sent. By
another scheme (``signature`` of a source) it covers the body, and the time where the scheme has one. Nothing else of a
signed request decides what is recorded: no other header, and of the path only what the configuration says anyway.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sync_orchestrator.api.problems import Refused
from sync_orchestrator.config import Config
from sync_orchestrator.config.signatures import SignatureSettings
from sync_orchestrator.config.signed_headers import SIGNED_HEADERS
from sync_orchestrator.core.service.api_keys import Caller

SIGNATURE = "webhook-signature"
ID, TIMESTAMP = SIGNED_HEADERS

_TOLERANCE_SECONDS = 300
_IDENT = re.compile(r"[\x21-\x7e]{1,190}")
_SECONDS = re.compile(r"[1-9][0-9]{0,11}")
"""One spelling of each time: another one would have the same signature, and show an expression another value."""
_DIGEST = re.compile(r"v1,([A-Za-z0-9+/]{43}=)")
_HEX = re.compile(r"[0-9a-fA-F]+")
_MAX_SIGNATURES = 20


@dataclass(frozen=True, slots=True)
class SignatureClaim:
    """What a request says of its signature: well formed and in time, but not compared with a body.

    Attributes:
        ident: The id of the message; None where the scheme has none.
        headers: The signed headers, by their names in lower case.
        before: What is signed before the body.
        after: What is signed after the body.
        algorithm: The hash of the HMAC.
        digests: The signatures; one of them has to be right.
        secrets: The keys that are valid for this request, by source system.
    """

    ident: str | None
    headers: Mapping[str, str]
    before: bytes
    after: bytes
    algorithm: str
    digests: tuple[bytes, ...]
    secrets: Mapping[str, list[bytes]]

    def verify_signer(self, body: bytes) -> Caller:
        """The source system that signed the body, as it was sent. Raises Refused (401)."""
        sources = [
            name for name, secrets in self.secrets.items() if any(self._is_by(secret, body) for secret in secrets)
        ]
        if not sources:
            raise make_refusal()
        return Caller(f"the signature of {sources[0]}", frozenset(f"events:{name}" for name in sources))

    def _is_by(self, secret: bytes, body: bytes) -> bool:
        code = hmac.new(secret, self.before, self.algorithm)
        code.update(body)
        code.update(self.after)
        made = code.digest()
        return any(hmac.compare_digest(made, digest) for digest in self.digests)


class Signatures:
    """The secrets of the source systems, by the path at which each is valid.

    A source system with ``events`` of its own signs for its own path, the others for that of CloudEvents: so the path,
    which is not signed, cannot give a body another meaning.
    """

    def __init__(self, config: Config) -> None:
        self._common: dict[str, list[bytes]] = {}
        self._own: dict[str, list[bytes]] = {}
        self._schemes: dict[str, _Scheme] = {}
        for name, source in config.sources.items():
            if not (keys := [key for _, key in source.list_signing_keys()]):
                continue
            place = self._common if source.events is None else self._own
            place[name] = keys
            if source.signature is not None:
                self._schemes[name] = _Scheme(source.signature)

    def read_claim(self, headers: Mapping[str, str], source: str | None) -> SignatureClaim | None:
        """Reads what a request says of its signature, before any body is read.

        It may be a request to a source's own path, or to the common one. None where it says nothing, or nobody signs
        there. Raises Refused (401).
        """
        secrets = self._common if source is None else {name: self._own[name] for name in self._own if name == source}
        if not secrets:
            return None
        if source is not None and (scheme := self._schemes.get(source)) is not None:
            return scheme.read_claim(headers, secrets)
        return _read_standard_claim(headers, secrets)


def _read_standard_claim(headers: Mapping[str, str], secrets: Mapping[str, list[bytes]]) -> SignatureClaim | None:
    """The claim by Standard Webhooks 1.0; None where there is no signature. Raises Refused (401)."""
    if SIGNATURE not in headers:
        return None
    ident, timestamp = headers.get(ID, ""), headers.get(TIMESTAMP, "")
    if _IDENT.fullmatch(ident) is None:
        raise make_refusal()
    _check_time(timestamp, _TOLERANCE_SECONDS)
    said = headers[SIGNATURE].split(" ")
    digests = tuple(base64.b64decode(match[1]) for each in said if (match := _DIGEST.fullmatch(each)))
    if not digests or len(said) > _MAX_SIGNATURES:
        raise make_refusal()
    signed = {ID: ident, TIMESTAMP: timestamp}
    return SignatureClaim(ident, signed, f"{ident}.{timestamp}.".encode(), b"", "sha256", digests, secrets)


class _Scheme:
    """The scheme of a source system that has ``signature`` in its settings."""

    def __init__(self, settings: SignatureSettings) -> None:
        self._settings = settings
        self._header = settings.header.lower()
        self._time_header = None if settings.time_header is None else settings.time_header.lower()
        self._id_header = None if settings.id_header is None else settings.id_header.lower()
        self._before, self._after = settings.split_signed()
        self._size = hashlib.new(settings.algorithm, usedforsecurity=False).digest_size

    def read_claim(self, headers: Mapping[str, str], secrets: Mapping[str, list[bytes]]) -> SignatureClaim | None:
        """The claim of a request; None where it has no signature. Raises Refused (401)."""
        if self._header not in headers:
            return None
        timestamp, said = self._read_header(headers)
        if timestamp is not None:
            _check_time(timestamp, self._settings.tolerance)
        digests = tuple(digest for each in said if (digest := self._decode_digest(each)) is not None)
        if not digests:
            raise make_refusal()
        ident = None
        if self._id_header is not None:
            ident = headers.get(self._id_header, "")
            if _IDENT.fullmatch(ident) is None:
                raise make_refusal()
        before, after = (each.replace("{timestamp}", timestamp or "").encode() for each in (self._before, self._after))
        signed = {} if self._time_header is None else {self._time_header: timestamp or ""}
        return SignatureClaim(ident, signed, before, after, self._settings.algorithm, digests, secrets)

    def _read_header(self, headers: Mapping[str, str]) -> tuple[str | None, list[str]]:
        """The time, where the scheme has one, and the signatures as they are written. Raises Refused (401)."""
        value, parts = headers[self._header], self._settings.parts
        if parts is None:
            if not value.startswith(self._settings.prefix):
                raise make_refusal()
            time_sent = None if self._time_header is None else headers.get(self._time_header, "")
            return time_sent, [value.removeprefix(self._settings.prefix)]
        pairs = value.split(",")
        if len(pairs) > _MAX_SIGNATURES:
            raise make_refusal()
        named = [(name.strip(), text.strip()) for name, _, text in (pair.partition("=") for pair in pairs)]
        return _find_only(text for name, text in named if name == parts.time), [
            text for name, text in named if name == parts.digest
        ]

    def _decode_digest(self, text: str) -> bytes | None:
        """A signature of the right length; None for any other text."""
        try:
            if self._settings.encoding == "base64":
                digest = base64.b64decode(text, validate=True)
            else:
                digest = bytes.fromhex(text) if _HEX.fullmatch(text) else b""
        except (binascii.Error, ValueError):
            return None
        return digest if len(digest) == self._size else None


def _find_only(texts: Iterable[str]) -> str:
    """The text where there is one. Raises Refused (401) where there are several, of which one may not be signed."""
    found = list(texts)
    if len(found) != 1:
        raise make_refusal()
    return found[0]


def _check_time(timestamp: str, tolerance: float) -> None:
    """Raises Refused (401) for what is no time in seconds since 1970, or too far from now."""
    if _SECONDS.fullmatch(timestamp) is None or abs(time.time() - int(timestamp)) > tolerance:
        raise make_refusal()


def make_refusal() -> Refused:
    """The refusal of a signature, the same for all that may be wrong with it."""
    return Refused(
        401,
        "The signature does not fit the body, the time or any secret that is good at this path.",
        {"WWW-Authenticate": "Bearer"},
    )
