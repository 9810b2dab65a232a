"""The paths of the proxy's routes: brought to one spelling first, then matched."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from urllib.parse import quote, unquote_to_bytes

from sync_orchestrator.api.problems import Refused
from sync_orchestrator.config import RouteSettings

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
# C0 and C1 control characters, line and paragraph separators, slashes, and what Windows' best fit makes slashes of.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029/\\\\\u2044\u2215\u2216\u29f5\u29f8]")
_MAX_BYTES = 8192


def split_path(raw: bytes) -> list[str]:
    """Splits a path as it was sent at its slashes and decodes each segment once.

    Raises Refused (400) for what another server may read as another path: an empty segment, ``.`` and ``..`` also with
    blanks, ``;`` or invisible characters around them, encoded slashes and backslashes, control characters, and what is
    not UTF-8. The same holds for what a second decoding makes of a segment, and for its compatibility form (NFKC),
    which turns full-width dots and slashes into plain ones.
    """
    if not raw.startswith(b"/") or len(raw) > _MAX_BYTES or _BAD_ESCAPE.search(raw):
        raise _make_refusal()
    try:
        found = [unquote_to_bytes(piece).decode() for piece in raw[1:].split(b"/")]
    except UnicodeDecodeError:
        raise _make_refusal() from None
    if not all(_has_one_reading(piece) for piece in found):
        raise _make_refusal()
    return found


def _has_one_reading(piece: str) -> bool:
    """Whether a segment stays one plain segment of a path in each way that servers are known to read it."""
    folded = unicodedata.normalize("NFKC", piece)
    if not (_is_plain(piece) and _is_plain(folded)):
        return False
    for read in {piece, folded}:
        if _ESCAPE.search(read):
            try:
                again = unquote_to_bytes(read).decode()
            except UnicodeDecodeError:
                return False
            if "%" in again or not _is_plain(again) or not _is_plain(unicodedata.normalize("NFKC", again)):
                return False
    return True


def _is_plain(piece: str) -> bool:
    name = piece.partition(";")[0]
    visible = [letter for letter in name if not letter.isspace() and unicodedata.category(letter) != "Cf"]
    return not _UNSAFE.search(piece) and any(letter != "." for letter in visible)


def join_path(pieces: list[str]) -> str:
    """The path again, in its one spelling."""
    return "".join("/" + quote(piece, safe="!$&'()*+,;=:@-._~") for piece in pieces)


class Paths:
    """Which route a path is of; of two that fit, the one that names more of it."""

    def __init__(self, routes: Mapping[str, RouteSettings]) -> None:
        split = [(name, route.method, route.path[1:].split("/")) for name, route in routes.items()]
        self._routes = sorted(split, key=lambda route: [piece.startswith("{") for piece in route[2]])

    def find_route(self, method: str, pieces: list[str]) -> tuple[str, dict[str, str]]:
        """The route's name, and the parts of its path. Raises Refused: 404, 405."""
        allowed = set()
        for name, verb, template in self._routes:
            parts = _match_template(template, pieces)
            if parts is not None:
                if verb == method or (verb, method) == ("GET", "HEAD"):
                    return name, parts
                allowed.add(verb)
        if allowed:
            raise Refused(
                405,
                "This method is not known here; /openapi.json says which are.",
                {"Allow": ", ".join(sorted(allowed))},
            )
        raise Refused(404, "There is no such route; /openapi.json says what there is.")


def _match_template(template: list[str], pieces: list[str]) -> dict[str, str] | None:
    if len(template) != len(pieces):
        return None
    parts = {}
    for told, piece in zip(template, pieces, strict=True):
        if told.startswith("{"):
            parts[told[1:-1]] = piece
        elif told != piece:
            return None
    return parts


def _make_refusal() -> Refused:
    return Refused(400, "This path can be read in more than one way, or in none.")
