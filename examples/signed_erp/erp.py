"""The ERP to try the example on: ``python -m examples.signed_erp.erp``. It forgets everything when it ends."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from itertools import count, islice
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


class Erp:
    """``/articles``; its clients are known by ``keys``, and ``made`` knows the requests of creates."""

    def __init__(self, keys: dict[str, str]) -> None:
        self.keys = keys
        self.articles: dict[str, Element] = {}
        self.made: dict[str, str] = {}
        self._numbers = count(1)

    async def answer(self, request: Request) -> Response:
        """Whatever is asked, with 200; the XML says how it went."""
        body = await request.body()
        answer = self._answer(request, body) if self._is_signed(request, body) else _says("denied", "wrong signature")
        return Response(ElementTree.tostring(answer), media_type="application/xml")

    def _is_signed(self, request: Request, body: bytes) -> bool:
        raw = request.scope["raw_path"].decode()
        target = raw + (f"?{request.url.query}" if request.url.query else "")
        key_id, _, signature = request.headers.get("X-Signature", "").partition(":")
        canonical = "\n".join(
            (request.method, target, request.headers.get("X-Date", ""), hashlib.sha256(body).hexdigest())
        )
        expected = hmac.digest(self.keys.get(key_id, "").encode(), canonical.encode(), "sha256")
        return key_id in self.keys and hmac.compare_digest(base64.b64encode(expected), signature.encode())

    def _answer(self, request: Request, body: bytes) -> Element:
        match request.method, request.url.path.strip("/").split("/"):
            case "GET", ["articles"]:
                return self._list(dict(request.query_params))
            case "POST", ["articles"]:
                return self._create(request.query_params.get("request", ""), ElementTree.fromstring(body))
            case "GET", ["articles", number] if number in self.articles:
                return _says("ok", article=self.articles[number])
            case "POST", ["articles", number, "withdraw"] if self._is_present(number):
                self.articles[number].set("state", "withdrawn")
                return _says("ok")
            case "POST", ["articles", number] if self._is_present(number):
                self.articles[number] = _kept(number, ElementTree.fromstring(body))
                return _says("ok")
        return _says("missing", "there is no such article")

    def _create(self, request: str, article: Element) -> Element:
        number = self.made.setdefault(request, f"A{next(self._numbers)}")
        self.articles.setdefault(number, _kept(number, article))
        return _says("ok", article=self.articles[number])

    def _list(self, asked: dict[str, str]) -> Element:
        found = {
            number: article
            for number, article in self.articles.items()
            if self._is_present(number)
            and all((article.findtext(name) or "") == asked[name] for name in ("code", "warehouse") if name in asked)
        }
        start, most = int(asked.get("start") or 0), int(asked.get("most", "100"))
        answer = _says("ok")
        answer.set("total", str(len(found)))
        answer.extend(islice(found.values(), start, start + most))
        if most and start + most < len(found):
            answer.set("next", str(start + most))
        return answer

    def _is_present(self, number: str) -> bool:
        return number in self.articles and self.articles[number].get("state") != "withdrawn"


def _says(status: str, reason: str = "", article: Element | None = None) -> Element:
    answer = Element("answer", {"status": status})
    if reason:
        SubElement(answer, "reason").text = reason
    if article is not None:
        answer.append(article)
    return answer


def _kept(number: str, article: Element) -> Element:
    article.set("id", number)
    return article


def application(erp: Erp) -> Starlette:
    """It as a web application."""
    return Starlette(routes=[Route("/{rest:path}", erp.answer, methods=["GET", "POST"])])


if __name__ == "__main__":
    erp = Erp({"us": os.environ.get("ERP_SECRET", "not-so-secret")})
    uvicorn.run(application(erp), host="127.0.0.1", port=int(os.environ.get("ERP_PORT", "8790")))
