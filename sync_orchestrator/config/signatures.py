"""How a source system signs its webhooks, where it does not follow Standard Webhooks."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sync_orchestrator.config.types import Model, Seconds

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_FILLED_IN = ("body", "timestamp")
_RESERVED = ("content-type", "content-encoding", "content-length", "host", "transfer-encoding")

HeaderName = Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$", max_length=100)]
"""The name of an HTTP header."""

SigningSecret = Annotated[str, Field(min_length=16, max_length=1000)]
"""The text by which a sender signs, as its settings page shows it. Its bytes are the key of the HMAC."""


class SignaturePartSettings(Model):
    """The names in a header that holds a time and signatures, such as ``t=1492774577,v1=5257a8…``."""

    time: str = Field(default="t", pattern=r"^[A-Za-z0-9_-]+$")
    """The name of the time, in seconds since 1970."""
    digest: str = Field(default="v1", pattern=r"^[A-Za-z0-9_-]+$")
    """The name of a signature; it may be there several times. Others are ignored."""


class SignatureSettings(Model):
    """A signature by HMAC over the body, in a header, as most senders of webhooks make it."""

    secrets: list[SigningSecret] = Field(repr=False, min_length=1, max_length=10)
    """The secrets, each as the sender shows it. Several are valid at once, so that a secret can be replaced."""
    header: HeaderName
    """The header that has the signature, such as ``X-Hub-Signature-256``."""
    algorithm: Literal["sha256", "sha512", "sha1"] = "sha256"
    """The hash of the HMAC. Choose ``sha1`` only if the sender offers nothing else; ``check`` prints a note then."""
    encoding: Literal["hex", "base64"] = "hex"
    """How the signature is written."""
    prefix: str = Field(default="", max_length=40)
    """A fixed text before the signature, such as ``sha256=``."""
    parts: SignaturePartSettings | None = None
    """For a header that holds the time and signatures as ``name=value`` pairs, separated by commas."""
    time_header: HeaderName | None = None
    """The header that has the time of the request, in seconds since 1970. Requests without it are refused."""
    tolerance: Seconds = Field(default=300, gt=0, le=86_400)
    """How far the time of a request may differ from ours. Requests outside of it are refused."""
    signed: str = Field(default="{body}", max_length=200)
    """What is signed. ``{body}`` is the body as it was sent, and ``{timestamp}`` the time as it was sent:
    ``"{timestamp}.{body}"``."""
    id_header: HeaderName | None = None
    """The header that has the id of the delivery, which becomes the event's id where ``events`` has no ``id``. Requests
    without it are refused. The signature does not cover it, so it decides nothing but whether an event is a repeated
    one."""

    @model_validator(mode="after")
    def _check_signed_content(self) -> SignatureSettings:
        names = _PLACEHOLDER.findall(self.signed)
        if unknown := sorted(set(names) - set(_FILLED_IN)):
            raise ValueError(f"signed: unknown name '{{{unknown[0]}}}'; expected one of: {{body}}, {{timestamp}}")
        if names.count("body") != 1:
            raise ValueError("signed: must contain {body} once: the signature has to cover the body")
        if self.parts is not None and self.time_header is not None:
            raise ValueError("time_header: the time is in 'parts': leave one of them out")
        if self.parts is not None and self.prefix:
            raise ValueError("prefix: with 'parts' a signature has the name of parts.digest: leave it out")
        if self.has_time and "timestamp" not in names:
            raise ValueError(
                'signed: must contain {timestamp}, such as "{timestamp}.{body}": a time that is not signed can be '
                "replaced by anyone who repeats a request"
            )
        if not self.has_time and "timestamp" in names:
            raise ValueError("signed: {timestamp} needs 'time_header' or 'parts', which say where the time is")
        if not self.has_time and "tolerance" in self.model_fields_set:
            raise ValueError("tolerance: has no effect without 'time_header' or 'parts': leave it out")
        self._check_headers()
        return self

    def _check_headers(self) -> None:
        seen: dict[str, str] = {}
        for field in ("header", "time_header", "id_header"):
            name = getattr(self, field)
            if name is None:
                continue
            if name.lower() in _RESERVED:
                raise ValueError(f"{field}: {name} describes the body: name the header that the sender adds")
            if (first := seen.setdefault(name.lower(), field)) != field:
                raise ValueError(f"{field}: '{first}' names the same header")

    @property
    def has_time(self) -> bool:
        """Whether a request shows when it was signed."""
        return self.parts is not None or self.time_header is not None

    @property
    def signed_headers(self) -> tuple[str, ...]:
        """The names, in lower case, of the headers that the signature covers."""
        return () if self.time_header is None else (self.time_header.lower(),)

    def split_signed(self) -> tuple[str, str]:
        """Returns what is signed before the body and after it, with ``{timestamp}`` still in it."""
        before, _, after = self.signed.partition("{body}")
        return before, after
