"""What an answer means: by rules over status, body path, code, message and headers, else by its status.

And what comes of it where a record waits for something that it refers to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from http_server import Server
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.responses import Answer, failure_of, sanitize_text
from sync_orchestrator.adapters.rest.paging import get_record
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config import OutcomeRule, RetrySettings
from sync_orchestrator.config.calls import ReadCallSettings, WriteCallSettings
from sync_orchestrator.core.retry import Decision, after_failure
from sync_orchestrator.errors import CallFailed, Failure, Refusal

HTML = """
<!-- gateway -->
<html><head><title>502 Bad Gateway</title><style>p { color: red }</style></head>
<body><h1>Bad &amp; sad</h1><script>alert(1)</script><p>Try&nbsp;later</p>
"""

FLAGS: dict[str, Callable[[CallFailed], bool]] = {
    "duplicate": lambda failure: failure.may_be_duplicate,
    "missing": lambda failure: failure.refusal is Refusal.MISSING,
    "conflict": lambda failure: failure.may_be_conflict,
    "too_large": lambda failure: failure.refusal is Refusal.TOO_LARGE,
    "unknown": lambda failure: failure.unknown,
}


def rule(when: str, means: str, message: str | None = None) -> OutcomeRule:
    return OutcomeRule.model_validate({"when": when, "means": means, "message": message})


async def called(
    server: Server,
    *rules: OutcomeRule,
    status: int = 200,
    content: Any = b"",
    headers: dict[str, str] | None = None,
    write: bool = True,
    system: tuple[OutcomeRule, ...] = (),
    target: tuple[OutcomeRule, ...] = (),
) -> tuple[Failure | None, set[str], str]:
    """What a call comes to that is answered so: the kind of failure, its flags, its detail."""

    async def handler(request: Request) -> Response:
        body = content.encode() if isinstance(content, str) else content
        return Response(body, status, {"content-type": "application/json", **(headers or {})})

    server.handler = handler
    http = HttpClient(
        HttpSettings(base_url=server.url, timeout=5, outcomes=list(system), headers={"X-Key": "s3cret<word>"})
    )
    try:
        await http.send(WriteCallSettings(path="/", outcomes=list(rules)), {}, write=write, outcomes=target, body={})
    except CallFailed as failed:
        failure = failed
    else:
        return None, set(), ""
    finally:
        await http.close()
    assert failure.status == status
    return failure.kind, {flag for flag, is_set in FLAGS.items() if is_set(failure)}, failure.detail


# Every meaning.

ERROR = '{"error": {"code": "E1", "message": "the reason"}, "ok": false}'


@pytest.mark.parametrize(
    ("means", "kind", "flags"),
    [
        ("ok", None, set()),
        ("created", None, set()),
        ("missing", Failure.PERMANENT, {"missing"}),
        ("duplicate", Failure.PERMANENT, {"duplicate"}),
        ("conflict", Failure.PERMANENT, {"conflict"}),
        ("invalid", Failure.PERMANENT, set()),
        ("auth", Failure.AUTH, set()),
        ("throttled", Failure.THROTTLED, set()),
        ("too_large", Failure.PERMANENT, {"too_large"}),
        ("reference_missing", Failure.REFERENCE, set()),
        ("transient", Failure.TRANSIENT, {"unknown"}),
    ],
)
@pytest.mark.parametrize(
    ("status", "when"),
    [
        pytest.param(500, "status == `500`", id="by status"),
        pytest.param(500, "body.error", id="by body path"),
        pytest.param(500, "body.error.code == 'E1'", id="by code"),
        pytest.param(500, "contains(body.error.message, 'reason')", id="by message"),
        pytest.param(500, "contains(text, 'the reason')", id="by text"),
        pytest.param(500, "headers.\"x-error\" == 'E1'", id="by header"),
        pytest.param(200, "body.ok == `false`", id="an error inside a 200"),
    ],
)
async def test_a_rule_means(
    server: Server, status: int, when: str, means: str, kind: Failure | None, flags: set[str]
) -> None:
    came = await called(
        server, rule(when, means, "body.error.message"), status=status, content=ERROR, headers={"X-Error": "E1"}
    )
    detail = "" if kind is None else f"{means.replace('_', ' ')}, answer {status}: the reason"
    assert came == (kind, flags, detail)


@pytest.mark.parametrize(
    ("rules", "answer", "kind", "flags"),
    [
        pytest.param(
            [rule("status == `403`", "missing")], {"status": 403}, Failure.PERMANENT, {"missing"}, id="403 for missing"
        ),
        pytest.param(
            [rule("status == `500` && contains(text, 'duplicate key')", "duplicate")],
            {"status": 500, "content": '{"e": "duplicate key value"}'},
            Failure.PERMANENT,
            {"duplicate"},
            id="500 for duplicate",
        ),
        pytest.param(
            [rule("status == `500` && contains(text, 'duplicate key')", "duplicate")],
            {"status": 500, "content": '{"e": "out of memory"}'},
            Failure.TRANSIENT,
            {"unknown"},
            id="500 for something else",
        ),
        pytest.param(
            [rule("status == `429` && body.code == 'TOO_BIG'", "too_large")],
            {"status": 429, "content": '{"code": "TOO_BIG"}', "headers": {"retry-after": "30"}},
            Failure.PERMANENT,
            {"too_large"},
            id="429 for too large",
        ),
        pytest.param(
            [rule("status == `204`", "missing")],
            {"status": 204},
            Failure.PERMANENT,
            {"missing"},
            id="204 for nothing written",
        ),
        pytest.param(
            [rule("body.errors[?path == 'store_id']", "reference_missing")],
            {"status": 422, "content": '{"errors": [{"path": "store_id"}]}'},
            Failure.REFERENCE,
            set(),
            id="422 for reference missing",
        ),
        pytest.param(
            [rule("body.errors", "invalid", "body.errors[0].message")],
            {"content": '{"data": null, "errors": [{"message": "x"}]}'},
            Failure.PERMANENT,
            set(),
            id="errors inside a 200: GraphQL",
        ),
        pytest.param(
            [rule("body.errors", "invalid")],
            {"content": '{"data": {}, "errors": []}'},
            None,
            set(),
            id="no errors inside a 200: GraphQL",
        ),
        pytest.param(
            [rule("body.error.code == `-32602`", "invalid")],
            {"content": '{"error": {"code": -32602}}'},
            Failure.PERMANENT,
            set(),
            id="errors inside a 200: JSON-RPC",
        ),
        pytest.param(
            [rule("body.status >= `400`", "transient")],
            {"content": '{"status": 503}'},
            Failure.TRANSIENT,
            {"unknown"},
            id="errors inside a 200: transient, so its outcome is unknown",
        ),
        pytest.param(
            [rule("body.code == 'BUSY'", "transient")],
            {"status": 423, "content": '{"code": "BUSY"}'},
            Failure.TRANSIENT,
            set(),
            id="a refusal that may pass did nothing",
        ),
        pytest.param(
            [rule("status == `404` && starts_with(text, '<')", "transient")],
            {"status": 404, "content": "<html>no route"},
            Failure.TRANSIENT,
            set(),
            id="HTML error pages: a gateway's 404 is no missing record",
        ),
        pytest.param([rule("status == `409`", "ok")], {"status": 409}, None, set(), id="409 for done already"),
        pytest.param(
            [rule("headers.\"x-result\" == 'created'", "created")],
            {"status": 303, "headers": {"X-Result": "created", "Location": "/items/7"}},
            None,
            set(),
            id="created, told by a header of a redirect",
        ),
    ],
)
async def test_rules_express(server: Server, rules: Any, answer: Any, kind: Failure | None, flags: set[str]) -> None:
    assert (await called(server, *rules, **answer))[:2] == (kind, flags)


async def test_429_for_too_large_is_not_waited_for(server: Server) -> None:
    too_large = rule("status == `429`", "too_large")
    answer = Answer(429, {"retry-after": "30"}, b"")
    failure = failure_of(answer, [too_large], write=True, retry_after=30)
    assert failure is not None
    assert (failure.refusal, failure.retry_after) == (Refusal.TOO_LARGE, None)
    throttled = failure_of(answer, [rule("status == `429`", "throttled")], write=True, retry_after=30)
    assert throttled is not None
    assert throttled.retry_after == 30


# Without a rule.


@pytest.mark.parametrize(
    ("status", "kind", "flags"),
    [
        (200, None, set()),
        (201, None, set()),
        (204, None, set()),
        (207, None, set()),
        (301, Failure.TRANSIENT, {"unknown"}),
        (400, Failure.PERMANENT, set()),
        (401, Failure.AUTH, set()),
        (403, Failure.AUTH, set()),
        (404, Failure.PERMANENT, {"missing"}),
        (408, Failure.TRANSIENT, {"unknown"}),
        (409, Failure.PERMANENT, {"duplicate", "conflict"}),
        (410, Failure.PERMANENT, {"missing"}),
        (412, Failure.PERMANENT, {"conflict"}),
        (413, Failure.PERMANENT, {"too_large"}),
        (422, Failure.PERMANENT, set()),
        (428, Failure.PERMANENT, {"conflict"}),
        (429, Failure.THROTTLED, set()),
        (500, Failure.TRANSIENT, {"unknown"}),
        (502, Failure.TRANSIENT, {"unknown"}),
        (503, Failure.TRANSIENT, {"unknown"}),
    ],
)
async def test_a_status_by_itself(server: Server, status: int, kind: Failure | None, flags: set[str]) -> None:
    assert (await called(server, status=status))[:2] == (kind, flags)


# Which rule decides.


async def test_rules_of_the_call_go_before_the_targets_and_those_before_the_systems(server: Server) -> None:
    call, target, system = (
        rule(f"body.{name}", means) for name, means in (("a", "missing"), ("b", "duplicate"), ("c", "conflict"))
    )
    for content, flags in (
        ('{"a": 1, "b": 1, "c": 1}', {"missing"}),
        ('{"b": 1, "c": 1}', {"duplicate"}),
        ('{"c": 1}', {"conflict"}),
    ):
        assert (await called(server, call, target=(target,), system=(system,), content=content))[1] == flags


@pytest.mark.parametrize("content", ["", "[]", "[1, 2]", '"text"', "7", "null", "{", HTML, '{"error": [1]}', "\xff"])
@pytest.mark.parametrize(
    "when",
    [
        "length(body.error.codes) > `0`",
        "contains(body.error.message, 'x')",
        "starts_with(body.error, 'x')",
        "sort_by(body, &code)[0].code == 'x'",
        "max(body) == 'x'",
        "to_number(body.error) > `5`",
        "join(',', body) == 'x'",
    ],
)
async def test_a_rule_that_does_not_fit_the_answer_is_no_match(server: Server, when: str, content: str) -> None:
    assert (await called(server, rule(when, "invalid"), content=content))[0] is None


@given(content=st.binary(max_size=60), status=st.integers(200, 599))
def test_no_answer_is_too_odd_for_rules(content: bytes, status: int) -> None:
    rules = [rule("length(body.a) > `1`", "missing"), rule("max_by(body, &b).b", "throttled", "body[0].x")]
    failure = failure_of(Answer(status, {}, content), rules, write=True)
    assert failure is None or len(failure.detail) < 500


@pytest.mark.parametrize(
    ("when", "complaint"),
    [
        ("status == 204", "not a JMESPath expression"),
        ("start_with(text, 'x')", "unknown function 'start_with'"),
        ("body.items[?size(tags) > `1`]", "unknown function 'size'"),
    ],
)
def test_a_rule_that_could_never_match_is_refused(when: str, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint.replace("(", r"\(")):
        rule(when, "ok")


# What people read.


@pytest.mark.parametrize(
    ("message", "content", "reason"),
    [
        pytest.param("body.error", '{"error": "no stock"}', "no stock", id="a text"),
        pytest.param("body.errors", '{"errors": [{"f": "ü"}]}', '[{"f": "ü"}]', id="a structure, as JSON"),
        pytest.param("body.errors[].m | join('; ', @)", '{"errors": [{"m": "a"}, {"m": "b"}]}', "a; b", id="several"),
        pytest.param("body.nothing", '{"error": 1}', '{"error": 1}', id="nothing there: all that came"),
        pytest.param("join(',', body)", '{"error": 1}', '{"error": 1}', id="does not fit: all that came"),
        pytest.param(None, '{"error": 1}', '{"error": 1}', id="not told: all that came"),
        pytest.param('headers."x-why"', "{}", "because", id="a header"),
        pytest.param("body.error", '{"error": "key s3cret<word> is wrong"}', "key *** is wrong", id="never a secret"),
    ],
)
async def test_message_picks_the_reason(server: Server, message: str | None, content: str, reason: str) -> None:
    came = await called(
        server, rule("status == `400`", "invalid", message), status=400, content=content, headers={"X-Why": "because"}
    )
    assert came[2] == f"invalid, answer 400: {reason}"


async def test_html_error_pages_are_shown_as_their_text(server: Server) -> None:
    kind, _, detail = await called(server, status=502, content=HTML, headers={"content-type": "text/html"})
    assert kind is Failure.TRANSIENT
    assert detail == "answer 502: an HTML page: 502 Bad Gateway Bad & sad Try later"


async def test_html_error_pages_with_200_are_no_success(server: Server) -> None:
    async def handler(request: Request) -> Response:
        return Response(HTML, 200)

    server.handler = handler
    http = HttpClient(HttpSettings(base_url=server.url))
    with pytest.raises(CallFailed) as caught:
        await get_record(http, ReadCallSettings(path="/"), {})
    await http.close()
    assert caught.value.kind is Failure.TRANSIENT
    assert caught.value.detail == ("the answer to GET / is not JSON: an HTML page: 502 Bad Gateway Bad & sad Try later")


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<html><body>token s3cret&lt;word&gt; expired", "an HTML page: token *** expired"),
        ("<html><body>token &#115;3cret<i></i>&lt;word&gt;", "an HTML page: token s3cret <word>"),
        ("<h1>No</h1>", "an HTML page: No"),
        ("<html><script>" * 5000, "an HTML page:"),
        ("<?xml version='1.0'?><Error>no</Error>", "<?xml version='1.0'?><Error>no</Error>"),
        ("x" * 1000, "x" * 300 + "…"),
    ],
)
def test_what_came_is_shown_short_readable_and_without_secrets(page: str, text: str) -> None:
    assert sanitize_text(page, ["s3cret<word>", "s3cret&lt;word&gt;"]) == text


# A record waits for what it refers to.


@pytest.mark.parametrize(
    ("policy", "waited", "asked", "wait"),
    [
        (RetrySettings(jitter=0), 0, None, 10),  # the first time
        (RetrySettings(jitter=0), 5, None, 10),
        (RetrySettings(jitter=0), 40, None, 40),  # as long again as before
        (RetrySettings(jitter=0, factor=3), 40, None, 80),
        (RetrySettings(jitter=0, factor=1), 40, None, 10),
        (RetrySettings(jitter=0), 90_000, None, 3600),  # the cap
        (RetrySettings(jitter=0), 0, 60, 60),  # what the other side asked for
        (RetrySettings(jitter=0.5), 40, None, 60),
    ],
)
def test_reference_missing_waits_in_proportion_and_spends_no_attempt(
    policy: RetrySettings, waited: float, asked: float | None, wait: float
) -> None:
    decision = after_failure(policy, 3, Failure.REFERENCE, retry_after=asked, waited=waited, draw=1.0)
    assert decision == Decision(3, wait)
