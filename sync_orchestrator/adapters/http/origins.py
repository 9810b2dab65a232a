"""Origins of addresses, and whether one address is below another."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

import httpx


def origin_of(url: httpx.URL) -> tuple[str, str, int | None]:
    """Returns scheme, host and port of an address."""
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def is_below(path: bytes, base: bytes) -> bool:
    """Whether a path of an address is at or below another one, however a server may read dots and escapes in it."""
    plain = path.partition(b"?")[0]
    for _ in range(2):  # some servers decode twice
        plain = unquote_to_bytes(plain).replace(b"\\", b"/")
        if {b".", b".."} & set(plain.split(b"/")):
            return False
    below = base.partition(b"?")[0].rstrip(b"/")
    return path.partition(b"?")[0] == below or path.startswith((below + b"/", below + b"?"))


def shown_origin(url: httpx.URL) -> str:
    """Returns the origin of an address as a message shows it."""
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace')}"
