"""docs/getting-started.md, followed word by word with two small real servers in place of the reader's systems."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import command_lines, read
from http_server import Server
from paths import ROOT
from small_systems import Backoffice, Partner, products

PAGE = read(ROOT / "docs" / "getting-started.md")
NOT_HERE = (["make", "install"], ["sync-orchestrator", "up"])
"""Installing, which has been done, and what does not end; ``test_up.py`` does that."""


@pytest.fixture
def systems() -> Iterator[dict[str, tuple[Server, Backoffice | Partner]]]:
    """The reader's two, by the address that the page calls them."""
    handlers: dict[str, Backoffice | Partner] = {
        "https://backoffice.example.com": Backoffice(products(), "the-token-of-your-system"),
        "https://partner.example.com": Partner("the-key-of-the-service"),
    }
    found = {}
    for address, handler in handlers.items():
        server = Server()
        server.handler = handler
        found[address] = server, handler
    yield found
    for server, _ in found.values():
        server.stop()


class Reader:
    """Does what the page says, in a folder of its own."""

    def __init__(self, folder: Path, addresses: dict[str, str], environment: dict[str, str]) -> None:
        self.folder = folder
        self._addresses = addresses
        self._environment = environment
        self.said: dict[str, str] = {}

    def does(self, words: list[str]) -> None:
        if words[0] == "export":
            for name, _, value in (word.partition("=") for word in words[1:] if not word.startswith("PATH=")):
                self._environment[name] = value
            return
        assert words[0] == "sync-orchestrator"
        here = [self._addresses.get(word, word) for word in words[1:]]
        done = subprocess.run(
            [sys.executable, "-m", "sync_orchestrator", *here],
            cwd=self.folder,
            text=True,
            env=self._environment,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stdout}{done.stderr}"
        self.said[shlex.join(words[1:])] = done.stdout

    def takes_away_the_comment_signs(self) -> None:
        """As step 3 says."""
        assert "Take away the `#` before both `headers` lines" in PAGE.text
        file = self.folder / "sync.yaml"
        assert file.read_text().count("# headers:") == 2
        file.write_text(file.read_text().replace("# headers:", "headers:"))


@pytest.mark.slow
def test_the_page_leads_to_a_green_check_and_a_first_full_sync(
    systems: dict[str, tuple[Server, Backoffice | Partner]],
    tmp_path: Path,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SYNC_CONFIG", "SYNC_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SYNC_DATABASE_URL", database_url)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    reader = Reader(tmp_path, {address: server.url for address, (server, _) in systems.items()}, dict(os.environ))
    (_, backoffice), (_, partner) = systems.values()
    assert isinstance(partner, Partner)
    assert isinstance(backoffice, Backoffice)
    for fence in PAGE.fences():
        if "export SOURCE_TOKEN" in fence.content:
            reader.takes_away_the_comment_signs()
        if "full-sync" in fence.content:
            assert partner.writes == 0, "nothing is written before step 5"
        for words, _ in command_lines(fence.content):
            if words not in NOT_HERE:
                reader.does(words)
    assert ", 0 failed, " in reader.said["check --live"]
    assert re.search(r"^all +7 +7 +0 +0 +0 *$", reader.said["plan product"], re.MULTILINE), "all of it is to be made"
    assert reader.said["full-sync product"] == "all of it is in sync\n"
    assert {
        item["sku"]: {name: item[name] for name in ("shop", "name", "price")} for item in partner.items.values()
    } == {
        sku: {name: record[name] for name in ("shop", "name", "price")} for sku, record in backoffice.products.items()
    }
    writes = partner.writes
    reader.does(["sync-orchestrator", "full-sync", "product"])
    assert partner.writes == writes, "a second full sync finds nothing to do"
