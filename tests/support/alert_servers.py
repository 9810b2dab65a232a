"""A webhook and a mail server that really listen, and can be down."""

from __future__ import annotations

import asyncio
import email
import json
import threading
from collections.abc import Callable
from email.message import EmailMessage
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session


class Receiver(Protocol):
    """Somebody at a port who can be told of alerts, once up."""

    @property
    def url(self) -> str: ...

    @property
    def titles(self) -> list[str]: ...

    def up(self) -> None: ...

    def close(self) -> None: ...


class Webhook:
    """Has a port from the start, listens there once it is up."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.status = 200
        self.on_message: Callable[[str], None] = lambda title: None
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                webhook.on_message(body["title"])
                if webhook.status < 300:
                    webhook.heard.append(body)
                    webhook.headers.append(dict(self.headers))
                self.send_response(webhook.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._server.server_bind()
        self._thread: threading.Thread | None = None
        self.place = f"127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        return f"json://{self.place}/"

    @property
    def titles(self) -> list[str]:
        return [message["title"] for message in self.heard]

    def up(self) -> None:
        self._server.server_activate()
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join(10)
        self._server.server_close()


class MailServer:
    """The same for mail; ``password`` is the only one it lets in."""

    def __init__(self, password: str | None = None) -> None:
        self.heard: list[EmailMessage] = []
        self.recipients: list[str] = []
        self.attempts = 0
        self.password = password
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(
            self._loop.create_server(self._session, "127.0.0.1", 0, start_serving=False)
        )
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.place = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def _session(self) -> SMTP:
        return SMTP(
            self,
            loop=self._loop,
            hostname="127.0.0.1",
            auth_required=self.password is not None,
            auth_require_tls=False,
            authenticator=self._let_in,
        )

    def _let_in(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        self.attempts += 1
        return AuthResult(success=data.password.decode() == self.password, handled=False)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        message = email.message_from_bytes(envelope.content, policy=default)
        assert isinstance(message, EmailMessage)
        self.heard.append(message)
        self.recipients += envelope.rcpt_tos
        return "250 taken"

    @property
    def url(self) -> str:
        return f"mailto://{self.place}?from=sync@example.org&to=oncall@example.org"

    @property
    def titles(self) -> list[str]:
        return [str(message["Subject"]) for message in self.heard]

    def texts(self) -> dict[str, str]:
        """The last message by type of content."""
        return {
            part.get_content_type(): part.get_content() for part in self.heard[-1].walk() if not part.is_multipart()
        }

    def up(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.start_serving(), self._loop).result(10)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        sessions = asyncio.all_tasks() - {asyncio.current_task()}
        for session in sessions:
            session.cancel()
        await asyncio.gather(*sessions, return_exceptions=True)
