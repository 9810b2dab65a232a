"""Requests that are signed as Standard Webhooks describes."""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime

from standardwebhooks import Webhook

SECRETS = [f"whsec_{base64.b64encode(bytes([n]) * 24).decode()}" for n in range(3)]


def signature(body: bytes, secret: str = SECRETS[0], seconds: float = 0, ident: str = "msg_1") -> dict[str, str]:
    at = time.time() + seconds
    made = Webhook(secret).sign(ident, datetime.fromtimestamp(int(at), tz=UTC), body.decode())
    return {"webhook-id": ident, "webhook-timestamp": str(int(at)), "webhook-signature": made}
