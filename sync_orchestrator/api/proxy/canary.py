"""Which way a call goes: to the third party, or to the legacy upstream as it is; and the comparison of both.

A read that fails or hangs on the new path is answered by legacy, and so is one that is answered there with anything but
a success. A write goes there again only where nothing can have been done.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from jmespath.exceptions import JMESPathError
from starlette.responses import Response

from sync_orchestrator import exact_json
from sync_orchestrator.adapters.http.passthrough import Passed, Upstream
from sync_orchestrator.api.problems import Refused
from sync_orchestrator.api.proxy.counters import RouteCounters
from sync_orchestrator.api.proxy.request import ProxyRequest
from sync_orchestrator.api.proxy.shared_state import SharedState
from sync_orchestrator.api.proxy.third_party_path import NotSent, ThirdPartyPath
from sync_orchestrator.config import RouteSettings
from sync_orchestrator.core.service.rollout import RolloutState
from sync_orchestrator.core.values.mapping import to_canonical_json
from sync_orchestrator.errors import CallFailed, Failure
from sync_orchestrator.expressions.selectors import compile_selector

_MAX_SHADOWS = 16

_log = logging.getLogger("sync_orchestrator.api")


class Canary:
    """One route's."""

    def __init__(
        self, name: str, route: RouteSettings, new: ThirdPartyPath, known: SharedState, tally: RouteCounters
    ) -> None:
        assert route.legacy is not None
        assert route.rollout is not None
        self._name = name
        self._route = route
        self._settings = route.rollout
        self._third_party_path = new
        self._known = known
        self._tally = tally
        self._legacy = Upstream(
            route.legacy.base_url, route.legacy.headers, route.legacy.timeout, route.passed_headers()
        )
        self._compared = compile_selector(self._settings.compare)
        self._shadows: set[asyncio.Task[None]] = set()

    async def answer_request(self, asked: ProxyRequest) -> Response:
        """What the caller gets. Raises Refused."""
        rollout = await self._find_rollout()
        if rollout.is_new(self._read_routing_value(asked)):
            if self._route.is_read:
                return await self._answer_read(asked, rollout)
            return await self._answer_write(asked, rollout)
        passed = await self._pass_to_legacy(asked)
        self._count_calls(rollout, "legacy")
        if rollout.shadow and self._route.is_read:
            self._start_shadow(asked, rollout, passed)
        return _make_response(passed)

    async def close(self) -> None:
        """Cancels the shadow requests under way, and closes the connections to the legacy service."""
        for task in self._shadows:
            task.cancel()
        await asyncio.gather(*self._shadows, return_exceptions=True)
        await self._legacy.close()

    async def _find_rollout(self) -> RolloutState:
        """With the database gone and nothing known, all go the way that they went before."""
        try:
            known = (await self._known.read_snapshot()).rollouts
        except Refused:
            known = {}
        return known.get(self._name, RolloutState(self._name))

    def _read_routing_value(self, asked: ProxyRequest) -> str | None:
        settings = self._settings
        if settings.by_part is not None:
            return asked.parts[settings.by_part]
        return asked.headers.get(str(settings.by_header)) or None

    async def _answer_read(self, asked: ProxyRequest, rollout: RolloutState) -> Response:
        told = await self._try_new_path(asked, self._settings.patience)
        if isinstance(told, Response) and told.status_code < 400 and not self._stands_in(told):
            self._count_calls(rollout, "new", "tried")
            return told
        self._count_calls(rollout, "fell_back", "tried")
        failed = self._has_failed(told)
        if failed:
            self._count_calls(rollout, "failed")
        try:
            passed = await self._pass_to_legacy(asked)
        except Refused:
            if isinstance(told, Response):
                return told
            if told is not None and not failed:
                raise told from None
            raise
        if not failed and told is not None:
            self._count_calls(rollout, "compared", *(["different"] if passed.status != _get_status(told) else []))
        return _make_response(passed)

    async def _answer_write(self, asked: ProxyRequest, rollout: RolloutState) -> Response:
        try:
            response = await self._third_party_path.answer_request(asked)
        except NotSent as error:
            self._count_calls(rollout, "fell_back", "tried", *(["failed"] if error.status >= 500 else []))
            return _make_response(await self._pass_to_legacy(asked))
        except Refused as error:
            self._count_calls(rollout, "new", "tried", *(["failed"] if error.status >= 500 else []))
            raise
        self._count_calls(rollout, "new", "tried")
        return response

    async def _try_new_path(self, asked: ProxyRequest, patience: float) -> Response | Refused | None:
        """What the new path answers, whatever it is; None where it does not, in time or at all."""
        try:
            async with asyncio.timeout(patience):
                return await self._third_party_path.answer_request(asked)
        except TimeoutError:
            return None
        except Refused as error:
            return error
        except Exception as error:  # it is on trial: whatever goes wrong in it is no reason to fail the caller
            _log.error("route %s: the new path broke: %s", self._name, type(error).__name__)
            return None

    def _start_shadow(self, asked: ProxyRequest, rollout: RolloutState, passed: Passed) -> None:
        """Asks the new path, too, once the caller is answered; not where enough of these are under way."""
        if len(self._shadows) >= _MAX_SHADOWS:
            self._count_calls(rollout, "not_shadowed")
            return
        task = asyncio.create_task(self._compare_shadow(asked, rollout, passed))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _compare_shadow(self, asked: ProxyRequest, rollout: RolloutState, passed: Passed) -> None:
        told = await self._try_new_path(asked, self._route.timeout)
        self._count_calls(rollout, "shadowed", "tried")
        if told is None or self._has_failed(told):
            self._count_calls(rollout, "failed")
        else:
            same = await asyncio.to_thread(self._is_same, told, passed)
            self._count_calls(rollout, "compared", *([] if same else ["different"]))

    def _has_failed(self, told: Response | Refused | None) -> bool:
        return told is None or _get_status(told) >= 500 or self._stands_in(told)

    def _stands_in(self, told: Response | Refused) -> bool:
        """Whether the archive answered because the third party did not."""
        read_from = self._route.read_from
        return read_from is not None and read_from.archive == "down" and "X-Served-From" in told.headers

    def _is_same(self, told: Response | Refused, passed: Passed) -> bool:
        """Errors are the same by status: each side words them in its own way."""
        if _get_status(told) != passed.status:
            return False
        if isinstance(told, Refused) or passed.status >= 300:
            return True
        return bool(self._canonicalize_content(bytes(told.body)) == self._canonicalize_content(passed.content))

    def _canonicalize_content(self, content: bytes) -> Any:
        try:
            return to_canonical_json(self._compared.search(exact_json.parse(content)))
        except (ValueError, RecursionError, JMESPathError):
            return content

    async def _pass_to_legacy(self, asked: ProxyRequest) -> Passed:
        try:
            return await self._legacy.pass_request(
                asked.method, asked.target, asked.sent_headers(), asked.body, self._route.answer_bytes
            )
        except CallFailed as failure:
            _log.warning("route %s: legacy: %s", self._name, failure.detail)
            if failure.kind is Failure.PERMANENT and not failure.unknown:
                raise Refused(400, "The request cannot be passed on: header values must be UTF-8.") from None
            if failure.kind is Failure.TRANSIENT:
                raise Refused(504, "The upstream did not answer.") from None
            raise Refused(502, "The upstream's answer cannot be passed on.") from None

    def _count_calls(self, rollout: RolloutState, *what: str) -> None:
        self._tally.count_calls(self._name, rollout.version, *what)


def _get_status(told: Response | Refused) -> int:
    return told.status if isinstance(told, Refused) else told.status_code


def _make_response(passed: Passed) -> Response:
    response = Response(passed.content, passed.status)
    if any(name == b"content-length" for name, _ in passed.headers):
        del response.headers["content-length"]
    response.raw_headers.extend(passed.headers)  # as bytes: what they mean is between upstream and caller
    return response
