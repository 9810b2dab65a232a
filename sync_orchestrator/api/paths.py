"""The paths of the proxy's routes: brought to one spelling first, then matched.

Not here: what a route does (``proxy.py``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, unquote_to_bytes

from sync_orchestrator.api.problems import Refused
from sync_orchestrator.config import Route

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ESCAPED_AGAIN = re.compile(r"%(2e|2f|5c|25|00)", re.IGNORECASE)
_UNSAFE = re.compile(r"[\x00-\x1f\x7f/\\]")
_MOST_BYTES = 8192


def segments(raw: bytes) -> list[str]:
    """What stands between the slashes of a path as it was sent, decoded once.

    Raises Refused (400) for what another server might read as another path: ``.`` and ``..``, an empty piece, slashes
    and dots that are encoded, once or twice, control characters, what is not UTF-8.
    """
    if not raw.startswith(b"/") or len(raw) > _MOST_BYTES or _BAD_ESCAPE.search(raw):
        raise _refused()
    try:
        found = [unquote_to_bytes(piece).decode() for piece in raw[1:].split(b"/")]
    except UnicodeDecodeError:
        raise _refused() from None
    for piece in found:
        if (not piece or piece.partition(";")[0] in ("", ".", "..") or _UNSAFE.search(piece)
                or _ESCAPED_AGAIN.search(piece)):
            raise _refused()
    return found


def spelt(pieces: list[str]) -> str:
    """The path again, in its one spelling."""
    return "".join("/" + quote(piece, safe="!$&'()*+,;=:@-._~") for piece in pieces)


class Paths:
    """Which route a path is of; of two that fit, the one that names more of it."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        split = [(name, route.method, route.path[1:].split("/")) for name, route in routes.items()]
        self._routes = sorted(split, key=lambda route: [piece.startswith("{") for piece in route[2]])

    def find(self, method: str, pieces: list[str]) -> tuple[str, dict[str, str]]:
        """The route's name, and the parts of its path. Raises Refused: 404, 405."""
        allowed = set()
        for name, verb, template in self._routes:
            parts = _parts(template, pieces)
            if parts is not None:
                if verb == method or (verb, method) == ("GET", "HEAD"):
                    return name, parts
                allowed.add(verb)
        if allowed:
            raise Refused(405, "This method is not known here; /openapi.json says which are.",
                          {"Allow": ", ".join(sorted(allowed))})
        raise Refused(404, "There is no such route; /openapi.json says what there is.")


def _parts(template: list[str], pieces: list[str]) -> dict[str, str] | None:
    if len(template) != len(pieces):
        return None
    parts = {}
    for told, piece in zip(template, pieces, strict=True):
        if told.startswith("{"):
            parts[told[1:-1]] = piece
        elif told != piece:
            return None
    return parts


def _refused() -> Refused:
    return Refused(400, "This path can be read in more than one way, or in none.")
