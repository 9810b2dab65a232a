"""The certificates that outgoing connections trust are read once in a process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import certifi
import pytest

from sync_orchestrator.adapters.http import transport as wire_module
from sync_orchestrator.adapters.http.certificates import trusted_certificates
from sync_orchestrator.adapters.http.transport import Transport, Wire


async def test_all_clients_share_what_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = []

    class Noted(Transport):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            contexts.append(self.ssl_context)

    monkeypatch.setattr(wire_module, "Transport", Noted)
    for number in (1, 2):
        wire = Wire(f"https://system{number}", {}, connections=1, timeout=1)
        wire.build_request("GET", "/", params=None, headers={})
        await wire.close()
    assert contexts == [trusted_certificates()] * 2


def test_another_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = trusted_certificates()
    (tmp_path / "ours.pem").write_bytes(Path(certifi.where()).read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ours.pem"))
    assert trusted_certificates() is not usual
