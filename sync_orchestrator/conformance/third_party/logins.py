"""The behaviour of a third party with a wrong login."""

from __future__ import annotations

import re
from typing import Any

from sync_orchestrator.config import ThirdPartySettings
from sync_orchestrator.config.environment import FromEnvironment
from sync_orchestrator.config.http_access import BasicAuthSettings, BearerAuthSettings, LoginSettings
from sync_orchestrator.conformance.fixture import Bench
from sync_orchestrator.conformance.report import Behaviours, Differs, Skipped
from sync_orchestrator.errors import CallFailed, Failure

_SECRET = re.compile(r"secret|token|passw|api[-_]?key|authorization|x-.*key", re.IGNORECASE)

LOGINS: Behaviours[Bench] = Behaviours()
behaviour = LOGINS.add


@behaviour("auth", "login")
async def wrong_login_is_told(bench: Bench) -> None:
    """A wrong login is told as such, so that everything waits until it is fixed."""
    wrong = _with_wrong_login(bench.system)
    if wrong is None:
        raise Skipped(
            "'auth' is a login call of its own, which is not tried with wrong credentials"
            if isinstance(bench.system.auth, LoginSettings)
            else "no login is set up that could be made wrong here"
        )
    stranger = bench.rebuilt(system=wrong)
    item = bench.make_item()
    try:
        await bench.list_records(third_party=stranger)
        await bench.create_record(item, stranger)
    except CallFailed as failure:
        if failure.kind is not Failure.AUTH:
            raise Differs(
                f"a failure of the kind '{failure.kind}': {failure.detail}",
                f"one of the kind '{Failure.AUTH}'",
                _rule_for(bench, failure),
            ) from None
        return
    finally:
        await stranger.close()
    raise Differs("it lets anybody read and write", "a refusal")


def _rule_for(bench: Bench, failure: CallFailed) -> str:
    """The rule that would tell a wrong login from other refusals."""
    place = f"third_parties.{bench.entity.third_party.system}.outcomes"
    if bench.system.adapter is not None:
        return f"see {bench.system.adapter}: raise CallFailed of the kind AUTH"
    rule = f'{{when: "status == `{failure.status}`", means: auth}}'
    return f"{'add to' if bench.system.outcomes else 'set'} {place}: {rule}, with a condition that fits this response"


def _with_wrong_login(system: ThirdPartySettings) -> dict[str, Any] | None:
    """The settings of the system that would have to change; None where nothing of a login is known."""
    headers = {name: _make_wrong(name, value) for name, value in system.headers.items()}
    settings = {name: _make_wrong(name, value) for name, value in system.settings.items()}
    changes: dict[str, Any] = {}
    match system.auth:
        case BasicAuthSettings():
            changes["auth"] = system.auth.model_copy(update={"password": "wrong"})
        case BearerAuthSettings():
            changes["auth"] = system.auth.model_copy(update={"token": "wrong"})
    if headers != system.headers:
        changes["headers"] = headers
    if settings != system.settings:
        changes["settings"] = settings
    return changes or None


def _make_wrong(name: str, value: Any) -> Any:
    secret = isinstance(value, FromEnvironment) or (isinstance(value, str) and _SECRET.search(name))
    return "wrong" if secret else value
