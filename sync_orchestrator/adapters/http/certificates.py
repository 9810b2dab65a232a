"""Which certificates outgoing connections trust, read once in a process: reading them takes longer than a request."""

from __future__ import annotations

import os
import ssl
from functools import cache

import httpx


def trusted_certificates() -> ssl.SSLContext:
    """The TLS context of outgoing connections, by SSL_CERT_FILE and SSL_CERT_DIR as httpx reads them."""
    return _create_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@cache
def _create_context(file: str | None, folder: str | None) -> ssl.SSLContext:
    return httpx.create_ssl_context()
