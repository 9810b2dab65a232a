"""Webhooks signed by another scheme than Standard Webhooks: the examples of ``docs/api.md``, and what is refused.

The signatures were computed with ``openssl dgst -hmac``; the one of GitHub is that of GitHub's documentation.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import yaml
from api_client import client_of, key_for, service
from documents import read
from fakes import two_part_config
from paths import ROOT
from pydantic import ValidationError
from sqlalchemy import Engine

from sync_orchestrator.api.intake.signatures import Signatures
from sync_orchestrator.api.problems import Refused
from sync_orchestrator.cli.overview import list_notes
from sync_orchestrator.config import Config
from sync_orchestrator.core.db.session import run

SECRET = "It's a Secret to Everybody"
OTHER = "another secret of this sender"
NOW = 1_700_000_000
PLAIN = {"key": "body.k", "action": "'updated'", "version": "body.v", "data": "body.row"}
BODY = json.dumps({"k": "k1", "v": 1, "row": {"store": "A", "n": 1}}).encode()
JSON = ("Content-Type", "application/json")
PATH = "/v1/sources/shop/events"

ANSWERS = {
    "X-Shopify-Hmac-Sha256": (
        b'{"id":632910392,"sku":"IPOD2008PINK","updated_at":"2024-01-02T09:28:43-05:00"}',
        "shpss_5d1c7a1b2f3e4d5c6b7a8990",
        {
            "X-Shopify-Hmac-Sha256": "VbGogt2OF07xsjofSH+FnvOsTIOPzgd0KWgrdFWePKs=",
            "X-Shopify-Webhook-Id": "b54557e4-bdd9-4b37-8a5f-bf7d70bcd043",
        },
        "b54557e4-bdd9-4b37-8a5f-bf7d70bcd043",
    ),
    "X-Hub-Signature-256": (
        b"Hello, World!",
        SECRET,
        {
            "X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
            "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
        },
        "72d3162e-cc78-11e3-81ab-4c9367dc0958",
    ),
    "Stripe-Signature": (
        b'{"id":"evt_1","type":"price.updated"}',
        "whsec_test_secret_of_stripe",
        {
            "Stripe-Signature": f"t={NOW},v1={'0' * 64},v0=6ffb"
            ",v1=eef8ae3acc2e26a8af0ec2165e2007a9e092cf3aa132d36e39dd35f028cc528c"
        },
        None,
    ),
    "X-Slack-Signature": (
        b'{"event":{"key":"k1"},"event_time":1}',
        "8f742231b10e8888abcd99yyyzzz85a5",
        {
            "X-Slack-Signature": "v0=bf37d2a94babbc67055d9e915f4921ba484777f3492d0886409f15b7fd7df050",
            "X-Slack-Request-Timestamp": str(NOW),
        },
        None,
    ),
    "X-WC-Webhook-Signature": (
        b'{"id":1,"sku":"WOO-1","date_modified_gmt":"2024-01-02T09:28:43"}',
        "Jk5bS;9Ya@(tw=W[T>hCw|G6vfu>Zi6R",
        {
            "X-WC-Webhook-Signature": "71O5ufeMvXAcZsK5ycaQcutHlHvatUQaT1pvGyP4kac=",
            "X-WC-Webhook-Delivery-ID": "f9bc0b8e3e0a3ff3b2b5b6a1e6a7b1f2",
        },
        "f9bc0b8e3e0a3ff3b2b5b6a1e6a7b1f2",
    ),
}


def documented() -> dict[str, dict[str, Any]]:
    """The source settings of ``docs/api.md`` that have a signature, by its header."""
    fences = [fence for fence in read(ROOT / "docs" / "api.md").fences() if fence.info == "yaml"]
    found = [yaml.safe_load(fence.content) for fence in fences if fence.content.startswith("signature:")]
    return {each["signature"]["header"]: each for each in found}


def config_of(signature: dict[str, Any], events: dict[str, Any] | None = None, **changes: Any) -> Config:
    return two_part_config(shop={"signature": signature, "events": PLAIN if events is None else events}, **changes)


def lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


# Known senders ------------------------------------------------------------------------------------------------------


def test_every_example_of_the_page_has_a_known_answer() -> None:
    assert documented().keys() == ANSWERS.keys()


@pytest.mark.parametrize("header", ANSWERS)
def test_known_signatures_are_recognized(header: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: float(NOW))
    body, secret, headers, ident = ANSWERS[header]
    example = documented()[header]
    signatures = Signatures(config_of({**example["signature"], "secrets": [OTHER, secret]}, example["events"]))
    claim = signatures.read_claim(lower(headers), "shop")
    assert claim is not None
    assert (claim.verify_signer(body).scopes, claim.ident) == (frozenset({"events:shop"}), ident)
    with pytest.raises(Refused):
        claim.verify_signer(body + b" ")
    strangers = Signatures(config_of({**example["signature"], "secrets": [OTHER]}, example["events"]))
    claim = strangers.read_claim(lower(headers), "shop")
    assert claim is not None
    with pytest.raises(Refused):
        claim.verify_signer(body)


# Requests -----------------------------------------------------------------------------------------------------------

PLAIN_SCHEME: dict[str, Any] = {"secrets": [SECRET, OTHER], "header": "X-Signature"}
TIMED: dict[str, Any] = {**PLAIN_SCHEME, "time_header": "X-Time", "signed": "v0:{timestamp}:{body}"}
PARTED: dict[str, Any] = {**PLAIN_SCHEME, "parts": {}, "signed": "{timestamp}.{body}"}


def made(content: bytes, secret: str = SECRET, algorithm: str = "sha256") -> str:
    return hmac.new(secret.encode(), content, algorithm).hexdigest()


def timed(seconds: float = 0, shown: str | None = None) -> dict[str, str]:
    at = str(int(time.time() + seconds))
    return {"X-Signature": made(f"v0:{at}:".encode() + BODY), "X-Time": at if shown is None else shown}


def parted(times: tuple[float, ...] = (0,)) -> dict[str, str]:
    sent = [str(int(time.time() + seconds)) for seconds in times]
    signature = made(f"{sent[0] if sent else ''}.".encode() + BODY)
    return {"X-Signature": ",".join([*(f"t={each}" for each in sent), f"v1={signature}"])}


REQUESTS: list[tuple[str, dict[str, Any], Callable[[], dict[str, str]], int]] = [
    ("by the first secret", PLAIN_SCHEME, lambda: {"X-Signature": made(BODY)}, 202),
    ("by the second secret", PLAIN_SCHEME, lambda: {"X-Signature": made(BODY, OTHER)}, 202),
    ("hex in capitals", PLAIN_SCHEME, lambda: {"X-Signature": made(BODY).upper()}, 202),
    ("sha512", {**PLAIN_SCHEME, "algorithm": "sha512"}, lambda: {"X-Signature": made(BODY, algorithm="sha512")}, 202),
    ("sha1", {**PLAIN_SCHEME, "algorithm": "sha1"}, lambda: {"X-Signature": made(BODY, algorithm="sha1")}, 202),
    ("a time in its header", TIMED, timed, 202),
    ("a time in the parts", PARTED, parted, 202),
    ("a wider tolerance", {**TIMED, "tolerance": "1h"}, lambda: timed(-3000), 202),
    ("by nobody's secret", PLAIN_SCHEME, lambda: {"X-Signature": made(BODY, "x" * 20)}, 401),
    ("of another body", PLAIN_SCHEME, lambda: {"X-Signature": made(BODY + b" ")}, 401),
    ("by another hash", PLAIN_SCHEME, lambda: {"X-Signature": made(BODY, algorithm="sha1")}, 401),
    ("a part of a signature", PLAIN_SCHEME, lambda: {"X-Signature": made(BODY)[:-2]}, 401),
    ("an empty one", PLAIN_SCHEME, lambda: {"X-Signature": ""}, 401),
    ("spaces in the hex", PLAIN_SCHEME, lambda: {"X-Signature": " ".join(made(BODY))}, 401),
    ("without the prefix", {**PLAIN_SCHEME, "prefix": "v1="}, lambda: {"X-Signature": made(BODY)}, 401),
    (
        "hex where base64 is configured",
        {**PLAIN_SCHEME, "encoding": "base64"},
        lambda: {"X-Signature": made(BODY)},
        401,
    ),
    ("no signature", PLAIN_SCHEME, dict, 401),
    ("no time", TIMED, lambda: {"X-Signature": timed()["X-Signature"]}, 401),
    ("another time than was signed", TIMED, lambda: timed(0, str(int(time.time()) - 5)), 401),
    ("the time in another spelling", TIMED, lambda: timed(0, f"0{int(time.time())}"), 401),
    ("too old", TIMED, lambda: timed(-301), 401),
    ("from the future", TIMED, lambda: timed(301), 401),
    ("parts that are too old", PARTED, lambda: parted((-301,)), 401),
    ("parts without a time", PARTED, lambda: parted(()), 401),
    ("parts with a second time", PARTED, lambda: parted((-9999, 0)), 401),
    ("too many parts", PARTED, lambda: {"X-Signature": parted()["X-Signature"] + ",x=1" * 20}, 401),
    ("no id of the delivery", {**PLAIN_SCHEME, "id_header": "X-Id"}, lambda: {"X-Signature": made(BODY)}, 401),
]


@pytest.mark.parametrize(
    ("scheme", "headers", "status"), [row[1:] for row in REQUESTS], ids=[row[0] for row in REQUESTS]
)
async def test_requests_by_a_scheme(
    engine: Engine, scheme: dict[str, Any], headers: Callable[[], dict[str, str]], status: int
) -> None:
    async with client_of(service(engine, config_of(scheme)), None) as client:
        answer = await post(client, headers())
    assert answer.status_code == status
    with engine.begin() as connection:
        assert len(list(run(connection, "SELECT 1 FROM sync.events"))) == (status == 202)


async def post(client: httpx.AsyncClient, headers: dict[str, str], body: bytes = BODY) -> httpx.Response:
    return await client.post(PATH, content=body, headers={"Content-Type": "application/json", **headers})


async def test_the_scheme_of_one_source_is_valid_at_no_other_path(engine: Engine) -> None:
    async with client_of(service(engine, config_of(PLAIN_SCHEME)), None) as client:
        for path in ("/v1/events", "/v1/sources/stock/events"):
            answer = await client.post(path, content=BODY, headers={"X-Signature": made(BODY)})
            assert answer.status_code == 401, path


async def test_a_source_with_a_scheme_may_use_a_key_too(engine: Engine) -> None:
    async with client_of(service(engine, config_of(PLAIN_SCHEME)), None) as client:
        assert (await post(client, {"X-API-Key": key_for(engine)})).status_code == 202


async def test_the_id_of_a_delivery_is_that_of_its_event_and_a_repeated_one_a_duplicate(engine: Engine) -> None:
    scheme = {**PLAIN_SCHEME, "id_header": "X-Id"}
    batch = json.dumps([json.loads(BODY), {**json.loads(BODY), "k": "k2"}]).encode()
    async with client_of(service(engine, config_of(scheme)), None) as client:
        for body, ident, taken in ((BODY, "d1", 1), (BODY, "d1", 0), (batch, "d2", 2), (batch, "d2", 0)):
            answer = await post(client, {"X-Signature": made(body), "X-Id": ident}, body)
            assert (answer.status_code, answer.json()["accepted"]) == (202, taken), ident
    with engine.begin() as connection:
        ids = [row.event_id for row in run(connection, "SELECT event_id FROM sync.events ORDER BY seq")]
    assert ids == ["d1", "d2#0", "d2#1"]


async def test_a_signed_request_without_an_id_is_known_by_its_content(engine: Engine) -> None:
    async with client_of(service(engine, config_of(PLAIN_SCHEME)), None) as client:
        counts = [(await post(client, {"X-Signature": made(BODY)})).json()["accepted"] for _ in range(2)]
    assert counts == [1, 0]


async def test_a_packed_body_is_compared_as_it_was_sent(engine: Engine) -> None:
    packed = gzip.compress(BODY)
    async with client_of(service(engine, config_of(PLAIN_SCHEME)), None) as client:
        for signed, status in ((packed, 202), (BODY, 401)):
            headers = {"X-Signature": made(signed), "Content-Encoding": "gzip"}
            assert (await post(client, headers, packed)).status_code == status


async def test_events_see_no_header_but_the_signed_time(engine: Engine) -> None:
    config = config_of(TIMED, {**PLAIN, "version": 'headers."x-time"'})
    at = timed()
    async with client_of(service(engine, config), None) as client:
        answer = await client.post(PATH, content=BODY, headers=[JSON, *at.items(), ("X-Time", "1")])
    assert answer.status_code == 202
    with engine.begin() as connection:
        assert [row.version for row in run(connection, "SELECT version FROM sync.events")] == [int(at["X-Time"])]


# Configurations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"secrets": []}, "signature.secrets"),
        ({"secrets": ["short"]}, "at least 16 characters"),
        ({"signed": "{timestamp}.{body}"}, r"signed: {timestamp} needs 'time_header' or 'parts'"),
        ({"signed": "nothing"}, r"signed: must contain {body} once"),
        ({"signed": "{body}{body}"}, r"signed: must contain {body} once"),
        ({"signed": "{body}{url}"}, r"signed: unknown name '{url}'"),
        ({"time_header": "X-Time"}, r"signed: must contain {timestamp}"),
        ({"parts": {}}, r"signed: must contain {timestamp}"),
        ({**TIMED, "parts": {}}, "time_header: the time is in 'parts'"),
        ({**PARTED, "prefix": "v1="}, "prefix: with 'parts'"),
        ({"tolerance": "1m"}, "tolerance: has no effect"),
        ({"header": "X Signature"}, "header"),
        ({"header": "Content-Type"}, "header: Content-Type describes the body"),
        ({"id_header": "x-signature"}, "id_header: 'header' names the same header"),
        ({"algorithm": "md5"}, "algorithm"),
    ],
)
def test_bad_schemes_are_refused_at_load(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        config_of({**PLAIN_SCHEME, **changes})


def test_a_scheme_needs_events_and_is_in_place_of_webhook_secrets() -> None:
    with pytest.raises(ValidationError, match="signature: needs 'events'"):
        two_part_config(shop={"signature": PLAIN_SCHEME})
    standard = "whsec_" + base64.b64encode(b"x" * 24).decode()
    with pytest.raises(ValidationError, match="signature: 'webhook_secrets' is another scheme"):
        two_part_config(shop={"signature": PLAIN_SCHEME, "events": PLAIN, "webhook_secrets": [standard]})


def test_two_sources_may_not_have_the_same_secret() -> None:
    with pytest.raises(ValidationError, match=r"sources\.stock\.signature\.secrets\.0: sources\.shop has the same"):
        config_of(PLAIN_SCHEME, stock={"signature": {**PLAIN_SCHEME, "secrets": [OTHER]}, "events": PLAIN})
    standard = base64.b64encode(hashlib.sha256(b"x").digest()[:18]).decode()
    with pytest.raises(ValidationError, match=r"sources\.stock\.webhook_secrets\.0: sources\.shop has the same"):
        config_of(
            {**PLAIN_SCHEME, "secrets": [base64.b64decode(standard).decode("latin-1")]},
            stock={
                "webhook_secrets": [base64.b64encode(base64.b64decode(standard).decode("latin-1").encode()).decode()]
            },
        )


@pytest.mark.parametrize("field", ["action", "when", "version"])
def test_events_may_not_look_at_what_is_not_signed(field: str) -> None:
    with pytest.raises(ValidationError, match=rf"events\.{field}: looks at headers, and a signature \(signature\)"):
        config_of(PLAIN_SCHEME, {**PLAIN, field: 'headers."x-topic"'})


@pytest.mark.parametrize(("algorithm", "notes"), [("sha1", 1), ("sha256", 0), ("sha512", 0)])
def test_a_weak_hash_is_noted(algorithm: str, notes: int) -> None:
    found = [note for note in list_notes(config_of({**PLAIN_SCHEME, "algorithm": algorithm})) if "sha1" in note]
    assert len(found) == notes
