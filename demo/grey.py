"""Reads of two hundred shops through the proxy, which move from the catalogue to the ERP in grey steps."""

from __future__ import annotations

import time
from typing import Any

import httpx
from rich.console import Console

from demo.data import stones

_SHOPS = 200
_HEARD_OF = 1.5
"""Seconds after which every replica knows of a change."""

console = Console(highlight=False)


class Grey:
    """Moves the route ``stone``; ``wrong`` is what did not go as it should."""

    def __init__(self, client: httpx.Client, api_url: str, key: str) -> None:
        self._client = client
        self._url = api_url
        self._headers = {"Authorization": f"Bearer {key}"}
        self.wrong: list[str] = []

    def refused(self) -> None:
        """A step up is refused while validation is not clean; reads go where they went."""
        answer = self._set(100, "an impatient try")
        if answer.status_code == 200:
            self.wrong.append("a step up was not refused while there was drift")
        console.print(f"  moving the shops' reads to the ERP now is refused: {answer.json().get('detail')}")
        self._read("0 %")

    def step(self, percent: int) -> None:
        """Sets the share, and has every shop read a stone."""
        answer = self._set(percent, f"step to {percent} %")
        if answer.status_code != 200:
            self.wrong.append(f"the step to {percent} % was refused: {answer.text}")
            return
        time.sleep(_HEARD_OF)
        self._read(f"{percent} %")

    def _set(self, percent: int, why: str) -> httpx.Response:
        return self._client.put(
            f"{self._url}/v1/rollouts/stone", headers=self._headers, json={"percent": percent, "why": why}
        )

    def _read(self, share: str) -> None:
        here = [stone["sku"] for stone in stones()][:_SHOPS]
        new, before = 0, len(self.wrong)
        for number, sku in enumerate(here):
            answer = self._client.get(
                f"{self._url}/proxy/stones/{sku}", headers={**self._headers, "X-Shop": f"shop-{number}"}
            )
            if answer.status_code not in (200, 404):
                self.wrong.append(f"at {share}, {sku} was answered with {answer.status_code}")
            elif answer.status_code == 200 and answer.json()["sku"] != sku:
                self.wrong.append(f"at {share}, {sku} was answered with {answer.json()}")
            new += _is_new(answer)
        right = len(here) - (len(self.wrong) - before)
        console.print(f"  at {share}, {new} of {len(here)} shops are served by the ERP; {right} got the right stone")
        if (share == "0 %" and new) or (share == "100 %" and not new):
            self.wrong.append(f"at {share}, {new} shops were served by the ERP")


def _is_new(answer: httpx.Response) -> bool:
    """The new path answers in a shape of its own."""
    document: Any = answer.json() if answer.status_code == 200 else {}
    return set(document) == {"sku", "title"}
