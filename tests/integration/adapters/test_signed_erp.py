"""The worked example of a class: it conforms, keeps an ERP in sync, and is what the document shows."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from http_server import Server
from paths import ROOT
from sqlalchemy import Engine

from examples.signed_erp.erp import Erp, application
from sync_orchestrator import composition
from sync_orchestrator.adapters.factory import build_third_parties
from sync_orchestrator.config import Config
from sync_orchestrator.conformance import assert_conforms, run_conformance
from sync_orchestrator.conformance.report import Behaviour
from sync_orchestrator.conformance.source import SOURCE
from sync_orchestrator.conformance.third_party import THIRD_PARTY
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.ports import Item
from sync_orchestrator.core.runtime import perform
from sync_orchestrator.core.validation.validate import validate
from sync_orchestrator.errors import CallFailed, Failure

EXAMPLE = ROOT / "examples" / "signed_erp"
SECRET = "hush-hush-hush"


@pytest.fixture
def erp(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Erp]:
    """The example's own ERP, and an environment in which its ``sync.yaml`` finds it."""
    erp = Erp({"us": SECRET})
    server.handler = erp.answer
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, value in (
        ("SYNC_CONFIG", str(EXAMPLE / "sync.yaml")),
        ("EXPORT", str(EXAMPLE / "export")),
        ("ERP_PORT", server.url.rpartition(":")[2]),
        ("ERP_SECRET", SECRET),
    ):
        monkeypatch.setenv(name, value)
    yield erp
    sys.modules.pop("signed_erp", None)


@pytest.fixture
def config(erp: Erp) -> Config:
    return composition.load_config()


async def test_it_conforms(config: Config, erp: Erp) -> None:
    report = await assert_conforms(config, "article", other_group="south", odd_keys=True)
    skipped = {ending.behaviour for ending in report.endings if ending.outcome == "skipped"}
    assert skipped == {"bulk-results-are-item-by-item", "values-truth"}
    assert all(article.get("state") == "withdrawn" for article in erp.articles.values())
    await assert_conforms(config, "article", part="export", group="north")


async def test_the_conformance_test_tells_when_the_erp_forgets_its_requests(config: Config, erp: Erp) -> None:
    class Forgetful(dict[str, str]):
        def setdefault(self, request: str, number: str = "") -> str:
            return number

    erp.made = Forgetful()
    report = await run_conformance(config, "article")
    assert report.find_ending("repeated-create-makes-no-duplicate").outcome == "failed"
    assert report.find_ending("repeated-create-makes-no-duplicate").hint == "see signed_erp:SignedErp, its create"


def test_it_is_kept_in_sync(config: Config, erp: Erp, engine: Engine) -> None:
    context = composition.open_context(engine, config)
    article = context.entities["article"]
    perform(context, full_sync(context, article, "north", patience=0.3))
    codes = sorted(str(each.findtext("code")) for each in erp.articles.values())
    assert codes == [
        "a-1",
        "a-2",
        "a-3",
        "a-5",
        "a-6",
        "a-7",
    ]
    assert perform(context, validate(context, article, "north", full=True)).verdict == "in_sync"
    cents = erp.articles["A1"].find("cents")
    assert cents is not None
    cents.text = "1"
    assert perform(context, validate(context, article, "north", full=True)).verdict == "drift"


async def test_a_wrong_secret_is_a_matter_of_login_and_stays_secret(
    config: Config,
    erp: Erp,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ERP_SECRET", "wrong-" + SECRET)
    adapter = build_third_parties(composition.load_config(), {})["article"]
    with pytest.raises(CallFailed, match="denied: wrong signature") as caught:
        await adapter.count("north")
    assert caught.value.kind is Failure.AUTH
    assert SECRET not in str(caught.value)
    await adapter.close()


async def test_the_erp_can_be_started_by_itself(erp: Erp) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(application(erp))) as client:
        answer = await client.get("http://erp/articles")
    assert answer.text == '<answer status="denied"><reason>wrong signature</reason></answer>'


async def test_what_is_no_xml_is_a_failure_that_may_pass(config: Config, erp: Erp, server: Server) -> None:
    server.respond_with({"maintenance": True})
    adapter = build_third_parties(config, {})["article"]
    with pytest.raises(CallFailed, match="no XML: ") as caught:
        await adapter.update(
            Item("a-1", "north", {"code": "a-1", "warehouse": "north", "name": "n", "price": 1.5, "stock": 1}, "A1")
        )
    assert caught.value.kind is Failure.TRANSIENT
    assert caught.value.unknown
    await adapter.close()


def test_the_document_shows_the_very_code() -> None:
    text = (ROOT / "docs" / "custom-adapters.md").read_text()
    shown = re.findall(r"```(?:python|yaml)\n(.*?)```", text, re.DOTALL)
    assert (EXAMPLE / "signed_erp.py").read_text() in shown
    assert (EXAMPLE / "sync.yaml").read_text() in shown


def test_the_document_names_every_behaviour() -> None:
    text = (ROOT / "docs" / "custom-adapters.md").read_text()
    named = {row.group(1): row.group(2) for row in re.finditer(r"^\| `([a-z-]+)` \| (.*) \|$", text, re.MULTILINE)}
    all_of_them: list[Behaviour[Any]] = [*THIRD_PARTY.all, *SOURCE.all]
    behaviours = {each.name: each.says.replace("``", "`") for each in all_of_them}
    assert behaviours.items() <= named.items()
