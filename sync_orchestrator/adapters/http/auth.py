"""Proving to a system who we are: Basic, bearer, and logins that give tokens which expire and rotate.

A login is made outside of the call that needs it: what goes wrong with it says nothing of that call, which was not
sent. Fixed headers are no matter of this module (``headers`` in the settings), and neither is where logins are kept
(``core/systems/login_sessions.py``).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from sync_orchestrator.adapters.http.responses import Answer, find_value
from sync_orchestrator.adapters.http.retry_after import seconds_until
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config import RequestSettings
from sync_orchestrator.config.http_access import BasicAuthSettings, BearerAuthSettings, LoginSettings
from sync_orchestrator.core.systems.login_sessions import LoginResponse, LoginStore, ProcessLogins, Session
from sync_orchestrator.errors import CallFailed, Failure
from sync_orchestrator.expressions import templates
from sync_orchestrator.expressions.templates import TemplateFailed

if TYPE_CHECKING:
    from sync_orchestrator.adapters.http.client import HttpClient

_REMEMBERED = 10.0
_EARLIER, _EARLIER_SHARE = 60.0, 0.1
_LOOK_AGAIN = 0.05
_KNOWN = 64


@dataclass(frozen=True, slots=True)
class Proof:
    """The headers that go with a call; ``number`` tells by which login."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    number: int | None = None


class SystemAuth:
    """A proof that never changes: none at all, Basic, bearer. The base of the others."""

    def __init__(self, proof: Proof = Proof(), secrets: tuple[str, ...] = ()) -> None:
        self._proof = proof
        self.secrets = secrets
        """What must not appear in an error text; another tuple when there are more."""

    async def get_proof(self) -> Proof:
        """What goes with a call. Raises CallFailed where it cannot be had."""
        return self._proof

    async def renew_proof(self, refused: Proof) -> Proof | None:
        """What goes with a second try of a call that was refused; None where that is no use. Raises CallFailed."""
        return None

    def note_accepted(self, proof: Proof) -> None:
        """A call with this proof went well."""


def auth_of(settings: HttpSettings, http: HttpClient, store: LoginStore | None) -> SystemAuth:
    """What the settings of a system ask for; ``store`` keeps logins, for this process alone if it is None."""
    match settings.auth:
        case BasicAuthSettings(user=user, password=password):
            word = base64.b64encode(f"{user}:{password}".encode()).decode()
            return SystemAuth(Proof({"Authorization": f"Basic {word}"}), (password, word))
        case BearerAuthSettings(token=token):
            return SystemAuth(Proof({"Authorization": f"Bearer {token}"}), (token,))
        case LoginSettings() as login:
            return _ByLogin(login, settings, http, store or ProcessLogins())
    return SystemAuth()


class _ByLogin(SystemAuth):
    """Logs in when a token is needed: one call at a time, however many wait for it, in all processes."""

    def __init__(self, login: LoginSettings, settings: HttpSettings, http: HttpClient, store: LoginStore) -> None:
        super().__init__()
        self._login = login
        self._settings = settings
        self._http = http
        self._store = store
        self._session: Session | None = None
        self._unproven: int | None = None
        self._failed: tuple[float, str] = (0.0, "")
        self._known: deque[str] = deque(maxlen=_KNOWN)
        self._renewing: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[Session]] = WeakKeyDictionary()

    async def get_proof(self) -> Proof:
        session = self._session
        if session is None or session.too_old:
            session = await self._renew_session(None if session is None else session.number)
        return self._proof_of(session)

    async def renew_proof(self, refused: Proof) -> Proof | None:
        session = self._session
        if session is not None and session.number != refused.number:  # another call was quicker
            return self._proof_of(session)
        if refused.number is not None and refused.number == self._unproven:
            self._unproven = None
            self._remember_failure("a token is refused that the login has just given")
            return None
        return self._proof_of(await self._renew_session(refused.number))

    def note_accepted(self, proof: Proof) -> None:
        if proof.number == self._unproven:
            self._unproven = None

    async def _renew_session(self, refused: int | None) -> Session:
        loop = asyncio.get_running_loop()
        task = self._renewing.get(loop)
        if task is None or task.done():
            task = self._renewing[loop] = loop.create_task(self._run_renewal(refused))
            task.add_done_callback(_retrieve_exception)
        return await asyncio.shield(task)  # a caller that gives up must not cut off the login of all

    async def _run_renewal(self, refused: int | None) -> Session:
        until, why = self._failed
        if time.monotonic() < until:
            raise CallFailed(Failure.AUTH, why, about_system=True)
        mark = await asyncio.to_thread(lambda: self._mark)
        most = 3 * self._settings.timeout
        while True:
            taken = await asyncio.to_thread(self._store.acquire_login, mark, refused, most + self._settings.timeout)
            if taken.session is not None:
                self._learn_secrets(*_list_secrets(taken.session.given))
            if taken.lease is not None:
                session = await self._logged_in(mark, taken.lease, taken.session, most)
            else:
                session = taken.session
            if session is not None:
                self._session = session
                return session
            await asyncio.sleep(_LOOK_AGAIN)

    async def _logged_in(self, mark: bytes, lease: int, last: Session | None, most: float) -> Session | None:
        try:
            async with asyncio.timeout(most):
                given = await self._log_in(last)
        except TimeoutError:
            await asyncio.to_thread(self._store.release_lease, lease)
            raise CallFailed(
                Failure.TRANSIENT, f"the login failed: it took more than {most:g} s", about_system=True
            ) from None
        except BaseException as error:
            await asyncio.to_thread(self._store.release_lease, lease)
            if isinstance(error, CallFailed) and error.kind is Failure.AUTH:
                self._remember_failure(error.detail)
            raise
        session = await asyncio.to_thread(self._store.store_login, mark, lease, given)
        self._unproven = None if session is None else session.number
        return session

    async def _log_in(self, last: Session | None) -> LoginResponse:
        again = self._choose_refresh_request(last)
        if last is not None and again is not None:
            try:
                return await self._request_login(again, last.given)
            except CallFailed as failure:
                if failure.kind is not Failure.AUTH:
                    raise
        return await self._request_login(self._login.request, LoginResponse(""))

    def _choose_refresh_request(self, last: Session | None) -> RequestSettings | None:
        """The call that makes use of the last login, if there is one."""
        if last is None:
            return None
        if self._login.refresh_request is not None:
            return self._login.refresh_request if last.given.refresh else None
        return self._login.request if {"token", "refresh"} & self._login.request.collect_template_names() else None

    async def _request_login(self, request: RequestSettings, last: LoginResponse) -> LoginResponse:
        try:
            prepared = self._http.prepare_request(
                request, {"token": last.token, "refresh": last.refresh or ""}, base_url=self._login.base_url
            )
            self._learn_secrets(*_iterate_texts([prepared.params, prepared.headers, prepared.content]))
            answer = await self._http.exchange(prepared, {})
            self._learn_secrets(*(str(value) for value in self._pick_values(answer).values()))
            if (failure := await self._http.failure_of(answer, request)) is not None:
                raise failure
        except CallFailed as failure:
            redirects = failure.status is not None and 300 <= failure.status < 400
            passing = failure.kind in (Failure.TRANSIENT, Failure.THROTTLED) and not redirects
            raise CallFailed(
                failure.kind if passing else Failure.AUTH,
                f"the login failed: {failure.detail}",
                retry_after=failure.retry_after,
                about_system=True,
            ) from None
        return self._read_login(answer, last)

    def _pick_values(self, answer: Answer) -> dict[str, object]:
        """What stands at the configured places, by their names in the settings."""
        places = {
            "token": self._login.token,
            "refresh": self._login.refresh,
            **{f"values.{name}": place for name, place in self._login.values.items()},
        }
        told = {name: find_value(place, answer.document) for name, place in places.items()}
        return {name: value for name, value in told.items() if value not in (None, "")}

    def _read_login(self, answer: Answer, last: LoginResponse) -> LoginResponse:
        picked = self._pick_values(answer)
        for name in ("token", *(f"values.{name}" for name in self._login.values)):
            if not _is_usable(picked.get(name)):
                raise self._build_unusable_failure(name, answer)
        if not _is_usable(picked.get("refresh", "")):
            raise self._build_unusable_failure("refresh", answer)
        lifetime = seconds_until(find_value(self._login.expires_in, answer.document), datetime.now(UTC))
        given = LoginResponse(
            str(picked["token"]),
            str(picked["refresh"]) if "refresh" in picked else last.refresh,
            {name: str(picked[f"values.{name}"]) for name in self._login.values},
            lifetime - min(_EARLIER, lifetime * _EARLIER_SHARE) if lifetime else None,
        )
        headers = self._render_headers(given)
        self._learn_secrets(*headers.values())
        if not all(text.isascii() and text.isprintable() for text in headers.values()):
            raise self._build_unusable_failure("token", answer)
        return given

    def _build_unusable_failure(self, name: str, answer: Answer) -> CallFailed:
        """What came is told by its shape alone: a token may stand anywhere in it."""
        place = {"token": self._login.token, "refresh": self._login.refresh}.get(name) or self._login.values[
            name.removeprefix("values.")
        ]
        return CallFailed(
            Failure.AUTH,
            f"the login failed: nothing usable as '{name}' at '{place}' in answer {answer.status}: "
            f"{_describe_shape(answer)}",
            about_system=True,
        )

    def _render_headers(self, given: LoginResponse) -> dict[str, str]:
        values = {**given.values, "token": given.token}
        try:
            return {name: templates.render_text(text, values) for name, text in self._login.headers.items()}
        except TemplateFailed as error:
            raise CallFailed(
                Failure.AUTH,
                f"no header can be made of the login: {self._http.sanitize_text(str(error))}",
                about_system=True,
            ) from None

    def _proof_of(self, session: Session) -> Proof:
        headers = self._render_headers(session.given)
        self._learn_secrets(*headers.values())
        return Proof(headers, session.number)

    def _remember_failure(self, why: str) -> None:
        self._failed = time.monotonic() + _REMEMBERED, why

    def _learn_secrets(self, *secrets: str) -> None:
        new = [secret for secret in dict.fromkeys(secrets) if secret not in self._known]
        if new:
            self._known.extend(new)
            self.secrets = tuple(self._known)

    @cached_property
    def _mark(self) -> bytes:
        """Stands for the settings; a hash that is slow on purpose, since a password goes into it."""
        assert self._settings.auth is not None
        auth = self._settings.auth.model_dump_json()
        variables = [os.environ.get(name) for name in templates.variables_in(auth)]
        told = [self._settings.base_url, *self._settings.headers.items(), auth, *variables]
        return hashlib.scrypt(repr(told).encode(), salt=b"sync_orchestrator.logins", n=2**14, r=8, p=1)


def _retrieve_exception(task: asyncio.Task[Session]) -> None:
    """Nobody may be left to hear of its failure."""
    if not task.cancelled():
        task.exception()


def _is_usable(value: object) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).isprintable()


def _list_secrets(given: LoginResponse) -> Iterator[str]:
    yield from (given.token, given.refresh or "", *given.values.values())


def _iterate_texts(value: object) -> Iterator[str]:
    """Every text that a login sends may be a secret, but for the word that says which kind of login it is."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            if name != "grant_type":
                yield from _iterate_texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _iterate_texts(part)
    elif isinstance(value, str):
        yield value


def _describe_shape(answer: Answer) -> str:
    body = answer.body
    if isinstance(body, dict):
        names = sorted(name for name in body if name.isidentifier() and len(name) <= 40)[:10]
        return f"an object with {', '.join(names)}" if names else "an object"
    if body is not None:
        return {list: "a list", str: "a text", bool: "a truth value"}.get(type(body), "a number")
    if not answer.content:
        return "an empty body"
    kind = answer.headers.get("content-type", "").partition(";")[0].strip()
    return f"no JSON ({kind})" if kind.replace("/", "").replace("-", "").isalnum() else "no JSON"
