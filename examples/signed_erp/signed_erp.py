"""An ERP whose requests are signed, and which answers everything with 200 and XML that says how it went."""

import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from urllib.parse import quote
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from pydantic import BaseModel, SecretStr

from sync_orchestrator.adapters.custom.base import ThirdPartyAdapter
from sync_orchestrator.adapters.http.prepared_calls import Outgoing
from sync_orchestrator.config.calls import Method
from sync_orchestrator.core.ports import Capabilities, Found, Item, Json
from sync_orchestrator.errors import CallFailed, Failure, Refusal


class SignedErpSettings(BaseModel, extra="forbid"):
    """What stands below ``settings`` in sync.yaml."""

    key_id: str
    secret: SecretStr
    page: int = 100


class SignedErp(ThirdPartyAdapter):
    """The articles of one warehouse after the other; an article that is withdrawn counts as deleted."""

    Settings = SignedErpSettings
    settings: SignedErpSettings
    capabilities = Capabilities(assigns_ids=True, can_lookup=True, idempotent_create=True, group_in_address=False)

    def sign(self, call: Outgoing) -> Mapping[str, str]:
        """HMAC over method, path with query, date, and digest of the body."""
        date = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        canonical = "\n".join((call.method, call.target, date, hashlib.sha256(call.content).hexdigest()))
        secret = self.settings.secret.get_secret_value().encode()
        signature = base64.b64encode(hmac.digest(secret, canonical.encode(), "sha256")).decode()
        return {"X-Date": date, "X-Signature": f"{self.settings.key_id}:{signature}"}

    async def create(self, item: Item) -> str:
        answer = await self._ask("POST", "/articles", body=_article(item), request=item.idempotency_key)
        return self._found(answer.find("article")).external_id

    async def update(self, item: Item) -> str | None:
        return item.external_id if await self._change(item, "", _article(item)) else None

    async def delete(self, item: Item) -> None:
        await self._change(item, "/withdraw", Element("withdraw"))

    async def read(self, item: Item) -> Found | None:
        try:
            answer = await self._ask("GET", f"/articles/{quote(item.external_id or '', safe='')}")
        except CallFailed as failure:
            if failure.refusal is Refusal.MISSING:
                return None
            raise
        return next(iter(self._present(answer)), None)

    async def lookup(self, key: str, group: str | None) -> list[Found]:
        return self._present(await self._ask("GET", "/articles", code=key))

    async def pages(self, group: str) -> AsyncIterator[list[Found]]:
        start: str | None = ""
        while start is not None:
            answer = await self._ask("GET", "/articles", warehouse=group, start=start, most=str(self.settings.page))
            yield self._present(answer)
            start = answer.get("next")

    async def count(self, group: str) -> int | None:
        return int((await self._ask("GET", "/articles", warehouse=group, most="0")).get("total", ""))

    async def _change(self, item: Item, what: str, body: Element) -> bool:
        """Says whether the article is there."""
        try:
            await self._ask("POST", f"/articles/{quote(item.external_id or '', safe='')}{what}", body=body)
        except CallFailed as failure:
            if failure.refusal is Refusal.MISSING:
                return False
            raise
        return True

    async def _ask(self, method: Method, path: str, *, body: Element | None = None, **params: str | None) -> Element:
        answer = await self.http.call(
            method,
            path,
            params=params,
            body=None if body is None else ElementTree.tostring(body),
            headers={"Content-Type": "application/xml"},
        )
        try:
            root = ElementTree.fromstring(answer.content)
        except ElementTree.ParseError:
            raise self.http.garbage("no XML", answer.text) from None
        detail = f"{root.get('status')}: {self.http.shown(root.findtext('reason') or '')}"
        match root.get("status"):
            case "ok":
                return root
            case "denied":
                raise CallFailed(Failure.AUTH, detail)
            case "busy":
                raise CallFailed(Failure.THROTTLED, detail, retry_after=float(root.get("seconds", "1")))
            case "missing":
                raise CallFailed(Failure.PERMANENT, detail, refusal=Refusal.MISSING)
        raise CallFailed(Failure.PERMANENT, detail)

    def _present(self, answer: Element) -> list[Found]:
        return [self._found(article) for article in answer.findall("article") if article.get("state") != "withdrawn"]

    def _found(self, article: Element | None) -> Found:
        if article is None or not article.get("id"):
            raise self.http.garbage("an answer without its article", "" if article is None else str(article.attrib))
        fields: Json = {
            "code": _text(article, "code"),
            "warehouse": _text(article, "warehouse"),
            "name": _text(article, "name"),
            "price": int(_text(article, "cents") or 0) / 100,
            "stock": int(_text(article, "stock") or 0),
        }
        return Found(fields["code"], article.get("id", ""), fields["warehouse"], fields)


def _article(item: Item) -> Element:
    article = Element("article")
    written = {**item.payload, "cents": round(item.payload["price"] * 100)}
    for name in ("code", "warehouse", "name", "cents", "stock"):
        made = SubElement(article, name, {} if written[name] is not None else {"nil": "true"})
        made.text = None if written[name] is None else str(written[name])
    return article


def _text(article: Element, name: str) -> str | None:
    found = article.find(name)
    return None if found is None or found.get("nil") == "true" else found.text or ""
