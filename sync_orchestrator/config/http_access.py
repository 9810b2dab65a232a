"""How a system is reached over HTTP: its address, logins, deadlines, throttling and allowed origins."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sync_orchestrator.config.call_checks import check_names
from sync_orchestrator.config.calls import OutcomeRule, RequestSettings, check_remake
from sync_orchestrator.config.types import Expression, Model, Seconds, Template
from sync_orchestrator.expressions.templates import names_in

_OVER_HTTP = {"headers", "auth", "outcomes", "throttle", "next_origins"}


class BasicAuthSettings(Model):
    """HTTP Basic."""

    kind: Literal["basic"]
    user: str
    """Who we are there."""
    password: str = Field(repr=False)
    """Of that user."""


class BearerAuthSettings(Model):
    """A token that does not change, after the word ``Bearer``. Any other fixed header goes into ``headers``."""

    kind: Literal["bearer"]
    token: str = Field(repr=False, pattern=r"^[\x21-\x7e]+$")
    """The token alone, without the word."""


class LoginSettings(Model):
    """A call that gives a token, made again when the token is refused or too old; all machines share what it gave.

    Names in ``request``: ``token`` and ``refresh`` (what the last login gave; empty at first). Names in ``headers``:
    ``token`` and all that ``values`` picked.
    """

    kind: Literal["login"]
    base_url: str | None = Field(default=None, pattern=r"^https?://")
    """Where the login is, if elsewhere than the system; the system's ``headers`` are sent there, too."""
    request: RequestSettings = Field(repr=False)
    """The call that gives the token."""
    token: Expression = "body.token"
    """Over ``{status, body, text, headers}``."""
    refresh: Expression | None = None
    """Where the token for the next login stands, if that one rotates; kept in the database, for all machines."""
    refresh_request: RequestSettings | None = Field(default=None, repr=False)
    """The call that is made with ``{{ refresh }}`` while there is one; ``request`` if it is refused."""
    values: dict[str, Expression] = {}
    """More of the answer that headers are composed of."""
    expires_in: Expression | None = None
    """Where the token's lifetime in seconds stands, or the time of its end; it is renewed a little earlier."""
    headers: dict[str, Template] = Field(default={"Authorization": "Bearer {{ token }}"}, repr=False)
    """What proves with each call that we are logged in."""

    @model_validator(mode="after")
    def _check_template_names(self) -> Self:
        last = {"token", "refresh"}
        check_names(
            {"request": self.request, "refresh_request": self.refresh_request},
            {"request": last, "refresh_request": last},
        )
        if self.refresh_request is not None and self.refresh is None:
            raise ValueError("refresh_request needs 'refresh'")
        if unknown := names_in(self.headers) - {"token", *self.values}:
            raise ValueError(f"headers: nothing fills in '{sorted(unknown)[0]}'; pick it with 'values'")
        return self


Auth = Annotated[BasicAuthSettings | BearerAuthSettings | LoginSettings, Field(discriminator="kind")]


class ThrottleSettings(Model):
    """Where an answer says how long to wait, beside ``Retry-After`` and the ``RateLimit`` headers, which are known.

    More than an hour counts as an hour.
    Expressions over ``{status, body, text, headers}``; what they find is seconds, seconds since 1970, or a date.
    """

    wait: Expression | None = None
    """On a throttled answer: when to come back."""
    slow_down: Expression | None = None
    """On a good answer: how long to hold off all calls, such as ``body.backoff``."""
    headers: bool = True
    """Whether the ``RateLimit`` headers count. They hold calls off for 60 seconds at most, and for 5 seconds until a
    refused call confirms them; a header that good answers contradict is ignored until a call is refused."""


class HttpSettings(Model):
    """How a system is reached over HTTP."""

    base_url: str = Field(pattern=r"^https?://")
    """The address that all paths stand below."""
    headers: dict[str, Annotated[str, Field(pattern=r"^[\x20-\x7e]*$")]] = Field(default={}, repr=False)
    """Sent with every call."""
    auth: Auth | None = None
    """How it knows us."""
    timeout: Seconds = 10
    """The deadline of one call."""
    max_response_bytes: int = Field(default=33_554_432, ge=1)
    """The largest response that is read, after it is unpacked; the call fails with a larger one."""
    concurrency: int = Field(default=32, ge=1, le=1000)
    """Calls under way at once, in one process. Of a third party that does not answer that many in time, fewer."""
    outcomes: list[OutcomeRule] = []
    """What its answers mean where their status does not say it plainly."""
    throttle: ThrottleSettings = ThrottleSettings()
    """Where its answers say how long to wait."""
    next_origins: dict[Annotated[str, Field(pattern=r"^https?://[^/?#]+$")], Literal["rewrite", "follow"]] = {}
    """Other origins that a next page's address may have, such as ``http://api.example.com`` behind a proxy that ends
    TLS. ``rewrite``: the page is requested from the origin of ``base_url``. ``follow``: it is requested there, with our
    credentials. A next page on the origin of ``base_url`` must be below it, unless that origin is named here, too."""

    @model_validator(mode="after")
    def _means_what_all_calls_can(self) -> Self:
        check_remake("outcomes", self.outcomes)
        return self


def check_address(system: HttpSettings) -> None:
    """Refuses what belongs to calls over HTTP where there is no address for them. Raises ValueError."""
    if not system.base_url and (unused := sorted(system.model_fields_set & _OVER_HTTP)):
        raise ValueError(f"'{unused[0]}' is for calls over HTTP: say 'base_url', too, or leave it out")
